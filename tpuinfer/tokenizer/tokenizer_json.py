"""The backend for `tokenizer.json`, the format of the `tokenizers` library.

Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, GPT-OSS), SentencePiece-like files (Gemma, Llama 2,
Mistral, Phi-3) and WordPiece (BERT) are understood; other decoders are refused by name.
"""

import functools
import json
import re
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.literal_twin import LiteralTwin
from tpuinfer.tokenizer.vocabulary import WORD_MARK, TokenTable, opening_ids

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonVocabulary:
    """A `tokenizer.json`; see `vocabulary.Vocabulary` for the attributes and methods.

    Args:
      text: the file's contents.
      path: where they come from, for errors.
      special: spellings that the checkpoint's other files call special; those among the file's
        added tokens are control tokens whatever the file itself says.

    Raises:
      TokenizerError: the contents are damaged, or decode in a way that is not known.
    """

    has_text = True

    def __init__(self, text: str, path: Path, special: Collection[str] = ()) -> None:
        try:
            value = json.loads(text)
            if _make_special(value, special):
                text = json.dumps(value)
            self._tokenizer = HfTokenizer.from_str(text)
            decoder = value.get("decoder")
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise TokenizerError(f"{path}: not a readable tokenizer.json ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.table = _table(self._tokenizer, _decoder_steps(decoder), path)
        controls = {
            token_id: token
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content
        }
        self.controls = {token.content: token_id for token_id, token in controls.items()}
        self.reads_variants = self._tokenizer.normalizer is not None and any(
            token.normalized for token in controls.values()
        )
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        added = list(zip(probe.ids, probe.special_tokens_mask, strict=True))
        self.prefix_ids = _leading_special(added)
        self.suffix_ids = _leading_special(added[len(self.prefix_ids) :][::-1])[::-1]
        self.bos_id = self.prefix_ids[0] if self.prefix_ids else None
        self.eos_id: int | None = None

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        if not parse_special:
            return self._literal.encode([text])
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_cut(self, parts: Sequence[str]) -> list[int]:
        return self._literal.encode(parts)

    def token_id(self, text: str) -> int | None:
        try:
            return self._tokenizer.token_to_id(text)
        except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and no token has
            return None

    @functools.cached_property
    def _literal(self) -> LiteralTwin:
        return LiteralTwin(self._tokenizer.to_str(), self.controls)


def _make_special(value: dict[str, Any], special: Collection[str]) -> bool:
    """Mark the added tokens that are in `special`; returns whether any was not yet."""
    plain = [
        entry
        for entry in value.get("added_tokens") or ()
        if entry["content"] in special and not entry["special"]
    ]
    for entry in plain:
        entry["special"] = True
    return bool(plain)


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
    if kinds == ["WordPiece"]:
        return _word_pieces(tokenizer)
    byte_level = "ByteLevel" in kinds
    if not byte_level and marks != {WORD_MARK}:
        raise TokenizerError(
            f"{path}: decoder {'+'.join(kinds) or 'none'} is not known; ByteLevel, WordPiece and "
            "SentencePiece-like decoders (Metaspace, or Replace of U+2581) are"
        )
    byte_fallback = "ByteFallback" in kinds
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, token in vocabulary.items():
        pieces[token] = (
            _byte_level_bytes(text) if byte_level else _marked_bytes(text, byte_fallback)
        )
    return TokenTable(
        pieces=pieces,
        control=_control_ids(tokenizer),
        opening=opening_ids(pieces) if any(map(_strips_first_space, steps)) else frozenset(),
        byte_fallback=byte_fallback,
    )


def _control_ids(tokenizer: HfTokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token for token, entry in added.items() if entry.special)


def _word_pieces(tokenizer: HfTokenizer) -> TokenTable:
    """WordPiece (Schuster and Nakajima, 2012): a space before each token but continuations.

    The library decodes token by token, so its tidying of punctuation (" ." to ".") is a matter of
    each token too, and asking it for every token after an empty one gives its bytes.
    """
    decoder = tokenizer.decoder
    assert decoder is not None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    openers = {}
    for text, token in vocabulary.items():
        pieces[token] = decoder.decode(["", text]).encode()
        openers[token] = decoder.decode([text]).encode()
        if pieces[token] == b" " + openers[token]:
            del openers[token]
    opening = opening_ids(pieces) - openers.keys()
    return TokenTable(pieces, _control_ids(tokenizer), opening, openers)


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
