import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.gguf_vocab import tokenizer_files
from tpuinfer.tokenizer.load import load_tokenizer

Write = Callable[..., Path]


@pytest.fixture
def bpe_json(bpe_metadata: dict[str, Any]) -> bytes:
    return tokenizer_files(bpe_metadata)["tokenizer.json"]


def _with_post_processor(data: bytes, token: int) -> bytes:
    value = json.loads(data)
    value["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "B", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [token], "tokens": ["<|im_start|>"]}},
    }
    return json.dumps(value).encode()


def test_a_vocabulary_alone_is_enough(write: Write, bpe_json: bytes) -> None:
    tokenizer = load_tokenizer(write(tokenizer_json=bpe_json))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, ())
    assert not tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_ids_beyond_the_model_may_be_control_tokens_alone(write: Write, bpe_json: bytes) -> None:
    value = json.loads(bpe_json)
    size = load_tokenizer(write(tokenizer_json=bpe_json)).vocab_size
    value["added_tokens"].append(
        {
            **{"id": size, "content": "<image>", "special": True, "normalized": False},
            **{"single_word": False, "lstrip": False, "rstrip": False},
        }
    )
    folder = write(tokenizer_json=json.dumps(value).encode())
    tokenizer = load_tokenizer(folder, vocab_size=size)
    assert tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode("a <image> b")) == "a <image> b"
    assert load_tokenizer(folder).vocab_size == size + 1
    with pytest.raises(TokenizerError, match="not of one model"):
        load_tokenizer(folder, vocab_size=size - 10)


def test_a_path_may_be_a_string(bpe_dir: Path) -> None:
    assert load_tokenizer(str(bpe_dir)).eos_ids == (2,)


@pytest.mark.parametrize("form", ["<|im_start|>", {"content": "<|im_start|>", "lstrip": False}])
@pytest.mark.parametrize("name", ["tokenizer_config_json", "special_tokens_map_json"])
def test_special_tokens_in_every_form(
    write: Write, bpe_json: bytes, form: object, name: str
) -> None:
    files = {"tokenizer_json": bpe_json, name: {"bos_token": form, "add_bos_token": True}}
    tokenizer = load_tokenizer(write(**files))
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode("<|im_start|>a", parse_special=True).count(1) == 1


@pytest.mark.parametrize(
    ("config", "first"), [({}, 1), ({"add_bos_token": True}, 1), ({"add_bos_token": False}, 68)]
)
def test_the_post_processor_adds_bos_unless_the_config_says_no(
    write: Write, bpe_json: bytes, config: dict[str, Any], first: int
) -> None:
    folder = write(
        tokenizer_json=_with_post_processor(bpe_json, 1),
        tokenizer_config_json={"bos_token": "<|im_start|>"} | config,
    )
    assert load_tokenizer(folder).encode("A")[0] == first


def test_eos_of_the_config_goes_after_a_text(write: Write, bpe_json: bytes) -> None:
    config = {"eos_token": "<|im_end|>", "add_eos_token": True}
    folder = write(tokenizer_json=bpe_json, tokenizer_config_json=config)
    assert load_tokenizer(folder).encode("A") == [68, 2]


def test_end_tokens_are_the_union_in_order(write: Write, bpe_json: bytes) -> None:
    folder = write(
        tokenizer_json=bpe_json,
        generation_config_json={"eos_token_id": [2, 0]},
        config_json={"eos_token_id": 7},
        tokenizer_config_json={"eos_token": "<|im_end|>"},
    )
    assert load_tokenizer(folder).eos_ids == (2, 0, 7)


def test_sentencepiece_brings_its_own_bos_and_eos(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    tokenizer = load_tokenizer(write(tokenizer_model=train_sentencepiece()))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))
    assert tokenizer.encode("cat")[0] == 1


def test_a_null_token_overrides_the_file(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    config = {"bos_token": None, "add_bos_token": False}
    folder = write(tokenizer_model=train_sentencepiece(), tokenizer_config_json=config)
    assert load_tokenizer(folder).bos_id is None


def test_tokens_added_after_a_sentencepiece_model(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    model = train_sentencepiece()
    size = load_tokenizer(write(tokenizer_model=model)).vocab_size
    added = {
        str(size): {"content": "<|end|>", "special": True},
        str(size + 1): {"content": "<note>", "special": False},
        str(size + 2): {"content": "<note>s", "special": False},
    }
    tokenizer = load_tokenizer(write(tokenizer_config_json={"added_tokens_decoder": added}))
    assert tokenizer.vocab_size == size + 3
    parsed = tokenizer.encode("<note><|end|>", add_special_tokens=False, parse_special=True)
    assert parsed == [size + 1, size]
    assert tokenizer.encode("<note>s", add_special_tokens=False) == [size + 2]
    assert size not in tokenizer.encode("<|end|>")
    assert tokenizer.decode([size, size + 1]) == "<note>"


def test_gaps_between_added_tokens_are_refused(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    config = {"added_tokens_decoder": {"9999": {"content": "x", "special": True}}}
    folder = write(tokenizer_model=train_sentencepiece(), tokenizer_config_json=config)
    with pytest.raises(TokenizerError, match=r"9999.*without gaps"):
        load_tokenizer(folder)


def test_the_template_file_wins_over_the_config(bpe_dir: Path) -> None:
    (bpe_dir / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(bpe_dir).apply_chat_template([{"role": "user"}]) == "from the file"


def test_named_templates_use_the_default(write: Write, bpe_json: bytes) -> None:
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "{{ bos_token }}d"}]
    config = {"bos_token": "<|im_start|>", "chat_template": named}
    folder = write(tokenizer_json=bpe_json, tokenizer_config_json=config)
    text = load_tokenizer(folder).apply_chat_template([{"role": "user", "content": ""}])
    assert text == "<|im_start|>d"


_NUMBERED = [{"name": number, "template": "x"} for number in (1, 2)]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"tokenizer_config_json": b"{"}, "tokenizer_config.json: cannot be read as JSON"),
        ({"tokenizer_config_json": []}, "holds a list"),
        ({"tokenizer_config_json": {"bos_token": "<nope>"}}, "bos_token is '<nope>'"),
        (
            {"tokenizer_config_json": b"[" * 100_000},
            "tokenizer_config.json: cannot be read as JSON",
        ),
        ({"tokenizer_json": b"[" * 100_000}, "not a readable tokenizer.json"),
        ({"chat_template_json": b"[" * 100_000}, "must be an object with a chat_template"),
        ({"tokenizer_config_json": {"eos_token": "\ud800"}}, "which the vocabulary lacks"),
        ({"tokenizer_config_json": {"chat_template": _NUMBERED}}, "chat_template names 1, 2;"),
        ({"tokenizer_config_json": {"add_bos_token": True}}, "no such token is named"),
        ({"tokenizer_config_json": {"chat_template": "{% if %}"}}, "chat template: line 1"),
        ({"tokenizer_config_json": {"chat_template": 3}}, "must be a string or a list"),
        ({"tokenizer_config_json": {"chat_template": []}}, "one must be 'default'"),
        ({"chat_template_jinja": b"\xff"}, "chat_template.jinja: cannot be read"),
        ({"config_json": {"eos_token_id": "2"}}, "eos_token_id is '2'"),
        ({"generation_config_json": {"eos_token_id": [True]}}, "must be ids"),
        ({"tokenizer_json": b"{}"}, "not a readable tokenizer.json"),
        ({"tokenizer_json": b"\xff"}, "not a readable tokenizer.json"),
        ({"chat_template_json": b"{}"}, "must be an object with a chat_template"),
    ],
)
def test_damaged_files_are_named(
    write: Write, bpe_json: bytes, files: dict[str, Any], match: str
) -> None:
    folder = write(**{"tokenizer_json": bpe_json} | files)
    with pytest.raises(TokenizerError, match=match):
        load_tokenizer(folder)


@pytest.mark.parametrize("added", [{"x": "y"}, {"4": {"content": ["x"], "special": True}}])
def test_added_tokens_of_the_wrong_shape(
    write: Write, train_sentencepiece: Callable[..., bytes], added: dict[str, Any]
) -> None:
    config = {"added_tokens_decoder": added}
    folder = write(tokenizer_model=train_sentencepiece(), tokenizer_config_json=config)
    with pytest.raises(TokenizerError, match="added_tokens_decoder must map ids"):
        load_tokenizer(folder)


@pytest.mark.parametrize("data", [b"", b"not a model"])
def test_a_damaged_sentencepiece_model(write: Write, data: bytes) -> None:
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_tokenizer(write(tokenizer_model=data))


def test_a_directory_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer; it must hold tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_in_another_form_is_named(write: Write) -> None:
    folder = write(tekken_json={}, vocab_json={})
    with pytest.raises(TokenizerError, match=r"its vocabulary is vocab\.json, tekken\.json"):
        load_tokenizer(folder, vocab_size=10)


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<tool>"},
        {"additional_special_tokens": ["<tool>"]},
        {"extra_special_tokens": {"tool_token": {"content": "<tool>"}}},
        {"added_tokens_decoder": {"266": {"content": "<tool>", "special": True}}},
    ],
)
def test_added_tokens_that_the_config_calls_special_are_control_tokens(
    write: Write, bpe_json: bytes, config: dict[str, Any]
) -> None:
    tokenizer = load_tokenizer(write(tokenizer_json=bpe_json, tokenizer_config_json=config))
    tool = tokenizer.vocabulary.token_id("<tool>")
    assert tool == 266
    assert tokenizer.encode("<tool>", parse_special=True) == [tool]
    assert tool not in tokenizer.encode("<tool>")
    assert tokenizer.decode([tool]) == ""


def test_user_defined_pieces_that_the_config_calls_special_are_control_tokens(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    plain = load_tokenizer(write(tokenizer_model=model))
    piece = plain.vocabulary.token_id("<u>")
    assert plain.encode("a<u>")[-1] == piece
    named = {"eos_token": "<u>"}
    listed = {"added_tokens_decoder": {str(piece): {"content": "<u>", "special": True}}}
    for config in (named, listed):
        tokenizer = load_tokenizer(write(tokenizer_model=model, tokenizer_config_json=config))
        assert tokenizer.encode("a<u>", parse_special=True)[-1] == piece
        literal = tokenizer.encode("a<u>")
        assert piece not in literal
        assert tokenizer.decode(literal) == "a<u>"


def test_ordinary_pieces_that_the_config_lists_as_special_are_control_tokens(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    plain = load_tokenizer(write(tokenizer_model=model))
    piece = max(plain.encode("cat"), key=lambda token: len(plain.decode([token])))
    spelling = plain.token_text(piece)
    assert len(spelling) == 2
    config = {"added_tokens_decoder": {str(piece): {"content": spelling, "special": True}}}
    tokenizer = load_tokenizer(write(tokenizer_model=model, tokenizer_config_json=config))
    literal = tokenizer.encode("cat cats")
    assert piece not in literal
    assert tokenizer.decode(literal) == "cat cats"


def test_tokens_that_take_spaces_away(
    write: Write, train_sentencepiece: Callable[..., bytes]
) -> None:
    model = train_sentencepiece(add_dummy_prefix=False)
    control = load_tokenizer(write(tokenizer_model=model)).vocabulary.token_id("<c>")
    flags = {"content": "<c>", "special": True, "lstrip": True, "rstrip": True}
    config = {"added_tokens_decoder": {str(control): flags}}
    tokenizer = load_tokenizer(write(tokenizer_model=model, tokenizer_config_json=config))
    ids = tokenizer.encode("a \n<c>\n b", parse_special=True, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<c>b"
    assert tokenizer.decode(tokenizer.encode("a <c> b")) == "a <c> b"
