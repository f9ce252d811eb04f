"""The backend for `tokenizer.model`, a SentencePiece model (arXiv:1808.06226)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.vocabulary import WORD_MARK, TokenTable

_Piece = pb.ModelProto.SentencePiece


@dataclass(frozen=True)
class AddedToken:
    """A token that a checkpoint adds to the model's own pieces; `special` ones are control."""

    content: str
    special: bool


class SentencePieceVocabulary:
    """A SentencePiece model; see `vocabulary.Vocabulary` for the attributes and methods.

    The library itself never maps control-token text to ids, so text is cut at control tokens here
    and each stretch between them is encoded on its own, with the model's own dummy prefix.

    Args:
      path: the model file.
      added: id -> token for ids beyond the model's own (`added_tokens_decoder`).

    Raises:
      TokenizerError: the file cannot be read, or added ids leave gaps.
    """

    def __init__(self, path: Path, added: Mapping[int, AddedToken] | None = None) -> None:
        try:
            data = path.read_bytes()
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
            proto = pb.ModelProto.FromString(data)
        except Exception as error:  # bindings and protobuf raise OSError, RuntimeError, DecodeError
            raise TokenizerError(f"{path}: not a SentencePiece model ({error})") from error
        own = len(proto.pieces)
        if not own:
            raise TokenizerError(f"{path}: not a SentencePiece model (it has no pieces)")
        extra = {i: token for i, token in sorted((added or {}).items()) if i >= own}
        if list(extra) != list(range(own, own + len(extra))):
            raise TokenizerError(
                f"{path}: has {own} pieces but tokens are added at ids {list(extra)}: "
                f"they must follow without gaps from {own}"
            )
        self.table = _table(proto, extra.values())
        self._ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        self._ids |= {token.content: i for i, token in extra.items()}
        control = [piece.piece for piece in proto.pieces if piece.type == _Piece.CONTROL]
        plain = [token.content for token in extra.values() if not token.special]
        self._parsed = _splitter([*control, *(token.content for token in extra.values())])
        self._literal = _splitter(plain)
        self.bos_id = _valid(self._processor.bos_id())
        self.eos_id = _valid(self._processor.eos_id())
        self.prefix_ids: tuple[int, ...] = () if self.bos_id is None else (self.bos_id,)
        self.suffix_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        splitter = self._parsed if parse_special else self._literal
        ids: list[int] = []
        for i, part in enumerate(splitter.split(text) if splitter else [text]):
            if i % 2:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)


def _valid(token: int) -> int | None:
    return None if token < 0 else token


def _splitter(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that cuts at any of `texts`, longest first; odd parts of a split are the texts."""
    ordered = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _table(proto: Any, added: Iterable[AddedToken]) -> TokenTable:
    """The bytes of every id, following the library's own decoding."""
    pieces: list[bytes] = []
    control: set[int] = set()
    opening: set[int] = set()
    for token, entry in enumerate(proto.pieces):
        kind, text = entry.type, entry.piece
        if kind == _Piece.BYTE:
            pieces.append(bytes([int(text[3:5], 16)]))
            continue
        if kind == _Piece.UNKNOWN:
            pieces.append(proto.trainer_spec.unk_surface.encode())
            continue
        pieces.append(text.replace(WORD_MARK, " ").encode())
        if kind == _Piece.CONTROL:
            control.add(token)
        elif text.startswith(WORD_MARK):
            opening.add(token)
    for token, extra in enumerate(added, len(pieces)):
        pieces.append(extra.content.encode())
        if extra.special:
            control.add(token)
    rules = proto.normalizer_spec
    strips = rules.add_dummy_prefix or rules.remove_extra_whitespaces
    return TokenTable(
        pieces=pieces,
        control=frozenset(control),
        opening=frozenset(opening) if strips else frozenset(),
        opening_run=rules.remove_extra_whitespaces,
        byte_fallback=True,
    )
