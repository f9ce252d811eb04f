"""Random answers within a grammar, and what a reader makes of a text however it is cut."""

import random
from collections.abc import Sequence

import llguidance

from tpuinfer.dialog.formats import Format
from tpuinfer.dialog.pieces import CallArguments, CallStart, Content, Piece, Reasoning, joined
from tpuinfer.dialog.reader import Reader
from tpuinfer.dialog.tools import ToolCall
from tpuinfer.grammar.lark import prepare

TEXT = "\n{}[]\"',:()<>/=|thinktool_call 0123456789abcxyz-."


class Bytes:
    """A tokenizer of 256 bytes, an end token, and control tokens behind them, for llguidance."""

    bos_token_id = None
    eos_token_id = 256

    def __init__(self, controls: Sequence[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [b"<eos>"]
        self.tokens += [text.encode() for text in controls]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.controls = {text: 257 + at for at, text in enumerate(controls)}

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def walk(tokens: Bytes, grammar: str, seed: int, stop: float = 0.7, most: int = 30000) -> str:
    """A complete text of `grammar`, byte by byte at random, control tokens as their spelling."""
    lark = prepare(grammar, "tools")
    wrapped = llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens))
    matcher = llguidance.LLMatcher(wrapped, llguidance.LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    draw = random.Random(seed)
    taken: list[int] = []
    closing_thought: list[int] = []
    while not matcher.is_stopped():
        assert len(taken) < most, "the walk does not end"
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(len(tokens.tokens)) if mask[i // 8] >> (i % 8) & 1]
        if 256 in allowed and draw.random() < stop:
            break
        likely = [i for i in allowed if i > 256 or (i < 256 and chr(i) in TEXT)]
        closing = [i for i in likely if i > 256 or chr(i) in '"}]<']
        if draw.random() > 0.3:
            closing = []
        if not closing_thought and draw.random() < 0.05:  # which chance alone would hardly spell
            closing_thought = list(b"</think>")
        wanted = closing_thought.pop(0) if closing_thought else -1
        if wanted in allowed:
            closing = [wanted]
        else:
            closing_thought = []
        picked = draw.choice(closing or likely or [i for i in allowed if i != 256])
        taken.append(picked)
        assert matcher.consume_token(picked), matcher.get_error()
    return b"".join(tokens.tokens[i] for i in taken).decode("utf-8", "replace")


def read(
    form: Format, text: str, *, tools: Sequence[str] = ("f", "g"), cut: int = 0, end: str = ""
) -> list[Piece]:
    """All pieces of an answer pushed `cut` characters at a time (0: at once), ids c0, c1, ..."""
    ids = iter(range(10**6))
    reader = Reader(form, tools, prompt_end=end, new_id=lambda: f"c{next(ids)}")
    pieces: list[Piece] = []
    for at in range(0, len(text), cut or len(text) or 1):
        pieces += reader.push(text[at : at + (cut or len(text))])
    return joined(pieces + reader.finish())


def meaning(pieces: Sequence[Piece]) -> tuple[str, str, list[ToolCall]]:
    """Content, reasoning and calls."""
    calls: list[ToolCall] = []
    for piece in pieces:
        if isinstance(piece, CallStart):
            calls.append(ToolCall(piece.index, piece.id, piece.name, ""))
        elif isinstance(piece, CallArguments):
            last = calls[piece.index]
            calls[-1] = ToolCall(last.index, last.id, last.name, last.arguments + piece.text)
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, Content)),
        "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)),
        calls,
    )
