"""The backend for `tokenizer.model`, a SentencePiece model (arXiv:1808.06226)."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    """A token that a checkpoint adds to the model's own pieces, or says more about.

    Attributes:
      special: it is a control token.
      lstrip, rstrip: it takes away the spaces before or after it.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False


class SentencePieceVocabulary:
    """A SentencePiece model; see `vocabulary.Vocabulary` for the attributes and methods.

    The library itself never maps control-token text to ids, so text is cut at control tokens here
    and each stretch between them is encoded on its own, with the model's own dummy prefix.

    Args:
      path: the model file.
      added: id -> token (`added_tokens_decoder`): those beyond the model's own pieces are added,
        and pieces of the model that are special here become control tokens.
      special: spellings that the checkpoint's other files call special: user-defined pieces among
        them become control tokens too.

    Raises:
      TokenizerError: the file cannot be read, or added ids leave gaps.
    """

    has_text = True
    reads_variants = False

    def __init__(
        self,
        path: Path,
        added: Mapping[int, AddedToken] | None = None,
        special: Collection[str] = (),
    ) -> None:
        proto = _read(path)
        self._ids: dict[str, int] = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        _make_control(proto, self._ids, added or {}, special)
        self._processor: Any = sentencepiece.SentencePieceProcessor(
            model_proto=proto.SerializeToString()
        )
        extra = _beyond(path, len(proto.pieces), added or {})
        self.table = _table(proto, extra.values())
        self._ids |= {token.content: i for i, token in extra.items()}
        self.controls = {
            text: token for text, token in self._ids.items() if token in self.table.control
        }
        plain = [token.content for token in extra.values() if not token.special]
        self._parsed, self._literal = _splitter(self.controls), _splitter(plain)
        strips = (added or {}).values()
        self._strips_before = {token.content for token in strips if token.lstrip}
        self._strips_after = {token.content for token in strips if token.rstrip}
        self.bos_id = _valid(self._processor.bos_id())
        self.eos_id = _valid(self._processor.eos_id())
        self.prefix_ids: tuple[int, ...] = () if self.bos_id is None else (self.bos_id,)
        self.suffix_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        if parse_special and self._parsed:
            return self.encode_cut(self._parsed.split(text))
        return self.encode_cut([text])

    def encode_cut(self, parts: Sequence[str]) -> list[int]:
        ids: list[int] = []
        for index, part in enumerate(self._stripped(parts)):
            if index % 2:
                ids.append(self._ids[part])
            elif self._literal:
                ids.extend(self._encode_plain(self._stripped(self._literal.split(part))))
            else:
                ids.extend(self._encode_plain([part]))
        return ids

    def token_id(self, text: str) -> int | None:
        return self._ids.get(text)

    def _encode_plain(self, parts: Iterable[str]) -> Iterator[int]:
        """Ids of text without control tokens; odd parts are the added tokens in it."""
        for index, part in enumerate(parts):
            if index % 2:
                yield self._ids[part]
            elif part:
                yield from self._processor.encode(part)

    def _stripped(self, parts: Sequence[str]) -> Sequence[str]:
        """Plain parts without the spaces that the tokens beside them take away."""
        if not (self._strips_before or self._strips_after):
            return parts
        kept = list(parts)
        for index in range(1, len(kept), 2):
            if kept[index] in self._strips_before:
                kept[index - 1] = kept[index - 1].rstrip()
            if kept[index] in self._strips_after:
                kept[index + 1] = kept[index + 1].lstrip()
        return kept


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
        sentencepiece.SentencePieceProcessor(model_proto=data)
        proto = pb.ModelProto.FromString(data)
    except Exception as error:  # bindings and protobuf raise OSError, RuntimeError, DecodeError
        raise TokenizerError(f"{path}: not a SentencePiece model ({error})") from error
    if not proto.pieces:
        raise TokenizerError(f"{path}: not a SentencePiece model (it has no pieces)")
    return proto


def _beyond(path: Path, own: int, added: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """The tokens that follow the model's `own` pieces."""
    extra = {i: token for i, token in sorted(added.items()) if i >= own}
    if list(extra) != list(range(own, own + len(extra))):
        raise TokenizerError(
            f"{path}: has {own} pieces but tokens are added at ids {list(extra)}: "
            f"they must follow without gaps from {own}"
        )
    return extra


def _make_control(
    proto: Any, ids: Mapping[str, int], added: Mapping[int, AddedToken], special: Collection[str]
) -> None:
    """Turn pieces into control tokens where the checkpoint says so; text no longer yields them."""
    named = {ids[text] for text in special if text in ids}
    for token in named:
        if proto.pieces[token].type == _Piece.USER_DEFINED:
            proto.pieces[token].type = _Piece.CONTROL
    for token, entry in added.items():
        if entry.special and ids.get(entry.content) == token:
            piece = proto.pieces[token]
            if piece.type in (_Piece.NORMAL, _Piece.USER_DEFINED):
                piece.type = _Piece.CONTROL


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
        control_cuts=True,
    )
