"""BERT's vocab.txt: the ids of transformers' own BERT tokenizer, and texts that read well."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = ["hello", "wor", "##ld", "##s", ",", ".", "!", "'", "cafe", "[", "]", "cls", "日", "##x"]
_VOCAB = "\n".join([*_SPECIAL, *_WORDS]) + "\n"


@pytest.fixture
def bert(write: Callable[..., Path]) -> Tokenizer:
    return load_tokenizer(write(vocab_txt=_VOCAB.encode(), tokenizer_config_json={}))


def test_words_are_cut_from_the_left_and_framed(bert: Tokenizer) -> None:
    assert bert.encode("Hello worlds!") == [2, 5, 6, 7, 8, 11, 3]
    assert bert.decode(bert.encode("Hello, worlds!")) == "hello, worlds!"
    assert bert.encode("日hello café zzz") == [2, 17, 5, 13, 1, 3]


def test_control_text_is_text(bert: Tokenizer) -> None:
    assert bert.encode("[CLS]") == [2, 14, 16, 15, 3]
    assert bert.encode("hello[SEP]", parse_special=True) == [2, 5, 3]


def test_what_the_config_says_of_case_and_chinese(write: Callable[..., Path]) -> None:
    config = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": True}
    tokenizer = load_tokenizer(write(vocab_txt=_VOCAB.encode(), tokenizer_config_json=config))
    assert tokenizer.encode("hello Hello café 日hello") == [2, 5, 1, 13, 1, 3]


def test_random_ids_decode_as_the_library_does(bert: Tokenizer) -> None:
    chance = random.Random(7)
    library = bert.vocabulary._tokenizer  # type: ignore[attr-defined]
    for _ in range(2000):
        ids = chance.choices(range(bert.vocab_size), k=chance.randrange(9))
        for skip in (True, False):
            want = library.decode(ids, skip_special_tokens=skip)
            assert bert.decode(ids, skip_special_tokens=skip) == want


@pytest.mark.parametrize(
    ("vocab", "match"),
    [("[UNK]\nhello\n", r"has no \[CLS\], \[SEP\]"), (_VOCAB + "cls\n", "1 lines stand in it")],
)
def test_damaged_vocabularies(write: Callable[..., Path], vocab: str, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        load_tokenizer(write(vocab_txt=vocab.encode()))


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_a_switch_that_is_none(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(TokenizerError, match=f"{name} is 'yes': it must be true, false or null"):
        load_tokenizer(write(vocab_txt=_VOCAB.encode(), tokenizer_config_json={name: "yes"}))
    load_tokenizer(write(vocab_txt=_VOCAB.encode(), tokenizer_config_json={name: None}))
