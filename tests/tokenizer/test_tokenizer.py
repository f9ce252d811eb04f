from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tpuinfer.errors import RequestError
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer
from tpuinfer.tokenizer.vocabulary import TokenTable


@pytest.fixture
def bpe(bpe_dir: Path) -> Tokenizer:
    return load_tokenizer(bpe_dir)


@pytest.fixture
def pieces(train_sentencepiece: Callable[..., bytes], write: Callable[..., Path]) -> Tokenizer:
    return load_tokenizer(write(tokenizer_model=train_sentencepiece()))


class _Letters:
    """Every character is its code point; the prefix is 1 and the suffix 2."""

    table = TokenTable(pieces=[chr(i).encode() for i in range(128)])
    has_text = True
    controls: dict[str, int] = {}  # noqa: RUF012  (nothing is added to it)
    reads_variants = False
    bos_id: int | None = 1
    eos_id: int | None = 2
    prefix_ids: tuple[int, ...] = (1,)
    suffix_ids: tuple[int, ...] = (2,)

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        return [ord(char) for char in text]

    def encode_cut(self, parts: Sequence[str]) -> list[int]:
        return self.encode("".join(parts), parse_special=True)

    def token_id(self, text: str) -> int | None:
        return ord(text)


def test_bos_and_eos_go_around_a_text_once() -> None:
    tokenizer = Tokenizer(_Letters(), prefix_ids=(1,), suffix_ids=(2,))
    assert tokenizer.encode("A") == [1, 65, 2]
    assert tokenizer.encode("\x01A\x02") == [1, 65, 2]
    assert tokenizer.encode("") == [1, 2]
    assert tokenizer.encode("A", add_special_tokens=False) == [65]


def test_merges_and_digits_one_by_one(bpe: Tokenizer) -> None:
    shown = [bpe.token_text(i) for i in bpe.encode("hello hello12")]
    assert shown == ["hello", " hello", "1", "2"]


@pytest.mark.parametrize("text", ["", "hello", " a\n\n b\t", "é🙂 日本", "<|im_start|>user", "\0"])
def test_bpe_round_trip(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", "hello cat", "a\n\n b\t", " two  spaces ", "é🙂 日本", "\0"])
def test_sentencepiece_round_trip(pieces: Tokenizer, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


def test_control_text_is_parsed_or_left_as_text(bpe: Tokenizer) -> None:
    assert bpe.encode("<|im_end|>", parse_special=True) == [2]
    literal = bpe.encode("<|im_end|>")
    assert 2 not in literal
    assert bpe.decode(literal) == "<|im_end|>"


def test_user_defined_text_is_always_a_token(bpe: Tokenizer) -> None:
    (tool,) = bpe.encode("<tool>", parse_special=True)
    assert bpe.encode("<tool>") == [tool]
    assert bpe.decode([tool]) == "<tool>"


def test_sentencepiece_control_text(pieces: Tokenizer) -> None:
    bos, control = pieces.bos_id, pieces.vocabulary.token_id("<c>")
    cat = pieces.encode("cat", add_special_tokens=False)
    assert pieces.encode("<s>cat<c>cat", parse_special=True) == [bos, *cat, control, *cat]
    assert control not in pieces.encode("cat<c>")
    assert pieces.decode(pieces.encode("cat<c>")) == "cat<c>"


def test_token_text_and_bytes(bpe: Tokenizer) -> None:
    first = 3 + 0xF0
    assert bpe.token_bytes(first) == b"\xf0"
    assert bpe.token_text(first) == "\ufffd"
    assert bpe.token_text(2) == "<|im_end|>"
    assert bpe.token_bytes(-1) == bpe.token_bytes(bpe.vocab_size) == b""
    assert b"".join(map(bpe.token_bytes, bpe.encode("a🙂é"))) == "a🙂é".encode()


def test_lone_surrogates_are_refused(bpe: Tokenizer, pieces: Tokenizer) -> None:
    for tokenizer in (bpe, pieces):
        with pytest.raises(RequestError, match=r"U\+D800 at character 1"):
            tokenizer.encode("a\ud800")


def test_a_chat_becomes_one_prompt(bpe: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    prompt = "<|im_start|>user\nhello<|im_end|>\n"
    opening = "<|im_start|>assistant\n"
    assert bpe.has_chat_template
    assert bpe.apply_chat_template(messages) == prompt + opening
    assert bpe.apply_chat_template(messages, add_generation_prompt=False) == prompt
    ids = bpe.encode_chat(messages)
    assert bpe.decode(ids, skip_special_tokens=False) == prompt + opening
    assert ids.count(1) == 2
    assert ids.count(2) == 1


def test_text_parts_are_joined(bpe: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = bpe.apply_chat_template([{"role": "user", "content": parts}])
    assert "user\none\ntwo<|im_end|>" in text


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "messages is empty"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is int"),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "user", "content": [{"type": "image_url"}]},
            ],
            r"messages\[1\].content has a part of type 'image_url'",
        ),
        ([{"role": "user", "content": ["a"]}], "part of type None"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text'"),
    ],
)
def test_messages_that_are_refused(bpe: Tokenizer, messages: list[Any], match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        bpe.apply_chat_template(messages)
    assert caught.value.param == "messages"


def test_a_model_without_template_takes_no_messages() -> None:
    tokenizer = Tokenizer(_Letters())
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match=r"no chat template.*--chat-template FILE"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])
