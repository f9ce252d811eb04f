"""The copy in which text is text, for each kind of model that a tokenizer.json may hold."""

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from tpuinfer.tokenizer.literal_twin import LiteralTwin

_MARK = "\u2581"
_TEXTS = ["a b", "  a", "<s>", "a<s> b</s>", "<s", "b<n> a", "é🙂"]


def _file(model: Any, **parts: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_tokens(
        [
            AddedToken("<s>", special=True, normalized=False),
            AddedToken("</s>", special=True, normalized=False, rstrip=True),
            AddedToken("<n>", special=False, normalized=False),
        ]
    )
    return tokenizer


def _pieces(*more: str) -> dict[str, int]:
    characters = [*"<>/absn\u00e9", _MARK, "\U0001f642"]
    return {piece: i for i, piece in enumerate(["<unk>", "<s>", *characters, *more])}


def _bpe(**options: Any) -> models.BPE:
    """`<s>` and `s>` can be merged, and `<s>` is an ordinary piece too."""
    merges = [("s", ">"), ("<", "s>")]
    return models.BPE(vocab=_pieces("s>"), merges=merges, unk_token="<unk>", **options)


_METASPACE = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
_KINDS = {
    "bpe": _file(_bpe(), pre_tokenizer=_METASPACE),
    "whole words": _file(_bpe(ignore_merges=True)),
    "unigram": _file(
        models.Unigram([(piece, -2.0) for piece in _pieces("s>", "ab")], 0, False),
        pre_tokenizer=_METASPACE,
    ),
    "words": _file(
        models.WordLevel(_pieces(), unk_token="<unk>"),
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    ),
    "wordpiece": _file(
        models.WordPiece(vocab=_pieces("##s", "##>", "##/"), unk_token="<unk>"),
        normalizer=normalizers.BertNormalizer(),
    ),
}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("text", _TEXTS)
def test_text_never_becomes_a_control_token(kind: str, text: str) -> None:
    tokenizer = _KINDS[kind]
    controls = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    twin = LiteralTwin(tokenizer.to_str(), controls)
    ids = twin.encode([text])
    assert not set(ids) & set(controls.values())
    assert (tokenizer.token_to_id("<n>") in ids) == ("<n>" in text)
    if "<" not in text:
        assert ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("parts", [["a", "<s>", " b"], ["", "</s>", "  a<n>", "<s>", ""]])
def test_control_texts_in_their_places_give_the_library_s_ids(kind: str, parts: list[str]) -> None:
    tokenizer = _KINDS[kind]
    controls = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    twin = LiteralTwin(tokenizer.to_str(), controls)
    assert twin.encode(parts) == tokenizer.encode("".join(parts)).ids


def test_nobody_can_guess_the_new_spellings() -> None:
    tokenizer = _KINDS["bpe"]
    first, second = (LiteralTwin(tokenizer.to_str(), {"<s>": 1}) for _ in range(2))
    spelling = json.loads(first._tokenizer.to_str())["added_tokens"][0]["content"]
    assert 1 in first.encode(["", "<s>", ""])
    assert 1 not in second.encode([spelling])


_NORMALIZERS = {
    "prepend": normalizers.Sequence([normalizers.Prepend(_MARK), normalizers.Replace(" ", _MARK)]),
    "nfkc": normalizers.NFKC(),
}


@pytest.mark.parametrize("normalizer", _NORMALIZERS)
@pytest.mark.parametrize(
    "flags", [{"normalized": True}, {"normalized": False, "single_word": True}]
)
def test_the_place_alone_decides(normalizer: str, flags: dict[str, bool]) -> None:
    """The library finds such a token in some places only: after spaces, or before no letter."""
    tokenizer = tokenizers.Tokenizer(_bpe())
    tokenizer.normalizer = _NORMALIZERS[normalizer]
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, **flags)])
    twin = LiteralTwin(tokenizer.to_str(), {"<s>": 1})
    a, mark = tokenizer.token_to_id("a"), tokenizer.token_to_id(_MARK)
    ids = twin.encode(["a", "<s>", "\u0338a", "<s>", ""])
    assert [token for token in ids if token != mark] == [a, 1, 0, a, 1]
    assert twin.encode(["\uff1cs\uff1e"]).count(1) == 0
