"""The backend for `tokenizer.json`, the format of the `tokenizers` library.

Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece-like files (Gemma, Llama 2, Mistral)
are understood; other decoders are refused by name.
"""

import functools
import json
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.vocabulary import WORD_MARK, TokenTable, opening_ids

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonVocabulary:
    """A `tokenizer.json`; see `vocabulary.Vocabulary` for the attributes and methods.

    Raises:
      TokenizerError: the file cannot be read, or decodes in a way that is not known.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = HfTokenizer.from_str(text)
            decoder = json.loads(text).get("decoder")
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise TokenizerError(f"{path}: not a readable tokenizer.json ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.table = _table(self._tokenizer, _decoder_steps(decoder), path)
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        added = list(zip(probe.ids, probe.special_tokens_mask, strict=True))
        self.prefix_ids = _leading_special(added)
        self.suffix_ids = _leading_special(added[len(self.prefix_ids) :][::-1])[::-1]
        self.bos_id = self.prefix_ids[0] if self.prefix_ids else None
        self.eos_id: int | None = None

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        tokenizer = self._tokenizer if parse_special else self._literal
        return tokenizer.encode(text, add_special_tokens=False).ids

    def token_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    @functools.cached_property
    def _literal(self) -> HfTokenizer:
        """A twin that reads control-token text as plain text: the choice is state in the library.

        Two copies rather than one whose flag flips, so that threads may share a tokenizer.
        """
        twin = HfTokenizer.from_str(self._tokenizer.to_str())
        twin.encode_special_tokens = True
        return twin


def _leading_special(added: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(token for token, _ in takewhile(lambda pair: pair[1] == 1, added))


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A decoder's steps in order, a sequence laid flat."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _decoder_steps(part)]
    return [decoder]


def _table(tokenizer: HfTokenizer, steps: list[dict[str, Any]], path: Path) -> TokenTable:
    """The bytes of every id, as `steps` would give them."""
    kinds = [step["type"] for step in steps]
    marks = {step.get("replacement") for step in steps if step["type"] == "Metaspace"}
    marks |= {
        step["pattern"].get("String")
        for step in steps
        if step["type"] == "Replace" and step.get("content") == " "
    }
    byte_level = "ByteLevel" in kinds
    if not byte_level and marks != {WORD_MARK}:
        raise TokenizerError(
            f"{path}: decoder {'+'.join(kinds) or 'none'} is not known; "
            "ByteLevel and SentencePiece-like decoders (Metaspace, or Replace of U+2581) are"
        )
    byte_fallback = "ByteFallback" in kinds
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        pieces[token] = (
            _byte_level_bytes(text) if byte_level else _marked_bytes(text, byte_fallback)
        )
    added = tokenizer.get_added_tokens_decoder()
    return TokenTable(
        pieces=pieces,
        control=frozenset(token for token, entry in added.items() if entry.special),
        opening=opening_ids(pieces) if any(map(_strips_first_space, steps)) else frozenset(),
        byte_fallback=byte_fallback,
    )


def _strips_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return bool(step["content"] == " " and step["start"] > 0)
    return bool(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")


@functools.cache
def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, character -> byte.

    Bytes that print in Latin-1 stand for themselves; the others take U+0100 onwards, in order.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


def _byte_level_bytes(text: str) -> bytes:
    """Bytes of a byte-level token; added tokens with other characters are spelled plainly."""
    try:
        return bytes(map(_alphabet().__getitem__, text))
    except KeyError:
        return text.encode()


def _marked_bytes(text: str, byte_fallback: bool) -> bytes:
    match = _BYTE_PIECE.fullmatch(text) if byte_fallback else None
    return bytes([int(match[1], 16)]) if match else text.replace(WORD_MARK, " ").encode()
