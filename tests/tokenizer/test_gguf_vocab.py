import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.gguf_vocab import tokenizer_files
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer


def _load(metadata: dict[str, Any], folder: Path) -> Tokenizer:
    for name, data in tokenizer_files(metadata).items():
        (folder / name).write_bytes(data)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        (
            "smollm",
            "It's 1234  ok!\n",
            ["It", "'s", " ", "1", "2", "3", "4", " ", " ok", "!", "\n"],
        ),
        ("gpt-2", "It's 1234  ok!\n", ["It", "'s", " 1234", " ", " ok", "!", "\n"]),
        ("gpt-2", "IT'S  \n x", ["IT", "'", "S", "  \n", " x"]),
        ("default", "x=1234 y", ["x", "=", "123", "4", " y"]),
        ("llama-bpe", "IT'S 1234.\n\n ok", ["IT", "'S", " ", "123", "4", ".\n\n", " ok"]),
        ("qwen2", "IT'S 12.\n\n (ok", ["IT", "'S", " ", "1", "2", ".\n\n", " (", "ok"]),
        ("qwen2", "e\u0301", ["\u00e9"]),
        ("deepseek-r1-qwen", "a 12", ["a", " ", "1", "2"]),
        ("smaug-bpe", "IT'S 1234.\n\n ok", ["IT", "'S", " ", "123", "4", ".\n\n", " ok"]),
        ("dbrx", "x=1234 (y", ["x", "=", "123", "4", " (", "y"]),
        ("refact", "It's 12 ok", ["It", "'s", " ", "1", "2", " ok"]),
        (
            "tekken",
            "camelCase IT'S 12 a//\n",
            ["camel", "Case", " IT", "'S", " ", "1", "2", " a", "//\n"],
        ),
        (
            "gpt-4o",
            "camelCase it's 1234 a//\n",
            ["camel", "Case", " it's", " ", "123", "4", " a", "//\n"],
        ),
    ],
)
def test_how_each_kind_cuts_text(
    bpe_metadata: dict[str, Any], pre: str, text: str, words: list[str]
) -> None:
    bpe_metadata["tokenizer.ggml.pre"] = pre
    data = tokenizer_files(bpe_metadata)["tokenizer.json"]
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
    assert [normal[start:end] for start, end in spans] == words


def test_a_missing_kind_is_the_default_one(bpe_metadata: dict[str, Any]) -> None:
    bpe_metadata["tokenizer.ggml.pre"] = "default"
    expected = tokenizer_files(bpe_metadata)
    del bpe_metadata["tokenizer.ggml.pre"]
    assert tokenizer_files(bpe_metadata) == expected


def test_llama_bpe_takes_whole_words_and_opens_with_bos(
    bpe_metadata: dict[str, Any], tmp_path: Path
) -> None:
    bpe_metadata["tokenizer.ggml.pre"] = "llama-bpe"
    bpe_metadata["tokenizer.ggml.tokens"].append("cat")
    bpe_metadata["tokenizer.ggml.token_type"].append(1)
    tokenizer = _load(bpe_metadata, tmp_path)
    cat = len(bpe_metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.encode("cat") == [1, cat]
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("cat").ids == [1, cat]


def test_the_config_files_of_a_bpe(bpe_metadata: dict[str, Any]) -> None:
    files = tokenizer_files(bpe_metadata)
    config = json.loads(files["tokenizer_config.json"])
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 64,
        "chat_template": bpe_metadata["tokenizer.chat_template"],
    }
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 1, "eos_token_id": [2]}


def test_end_of_turn_tokens_also_end_a_text(bpe_metadata: dict[str, Any], tmp_path: Path) -> None:
    bpe_metadata["tokenizer.ggml.eos_token_id"] = 0
    assert _load(bpe_metadata, tmp_path).eos_ids == (0, 2)
    bpe_metadata["tokenizer.ggml.token_type"][2] = 1
    assert _load(bpe_metadata, tmp_path).eos_ids == (0,)
    bpe_metadata["tokenizer.ggml.eot_token_id"] = 5
    assert _load(bpe_metadata, tmp_path).eos_ids == (0, 5)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece_encodes_as_the_original(
    train_sentencepiece: Any, gguf_of: Any, tmp_path: Path, dummy_prefix: bool
) -> None:
    model = train_sentencepiece(
        add_dummy_prefix=dummy_prefix, user_defined_symbols=["\u2581\u2581", "<u>"]
    )
    metadata = gguf_of(model) | {"tokenizer.ggml.add_space_prefix": dummy_prefix}
    tokenizer = _load(metadata, tmp_path)
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("hello cat", " the  mat\n", "é🙂日", "a<u>dog    fox", ""):
        ids = original.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == original.decode(ids)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_the_unknown_token_is_found_by_its_name(
    train_sentencepiece: Any, gguf_of: Any, tmp_path: Path
) -> None:
    metadata = gguf_of(train_sentencepiece())
    del metadata["tokenizer.ggml.unknown_token_id"]
    metadata["tokenizer.ggml.token_type"][0] = 3
    assert _load(metadata, tmp_path).decode([0]) == " \u2047 "
    metadata["tokenizer.ggml.tokens"][0] = "<none>"
    with pytest.raises(TokenizerError, match="no unknown token"):
        tokenizer_files(metadata)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": "bert"}, "model is 'bert': it must be 'gpt2' or 'llama'"),
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"pre": "chatglm"}, "pre is 'chatglm': it must be one of default, gpt-2, llama-bpe"),
        ({"pre": "olmo"}, "pre is 'olmo'"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "merge 'ab'"),
        ({"merges": ["q z"]}, "cannot be built"),
        ({"token_type": [1]}, "1 token types"),
        ({"bos_token_id": 9999}, "bos_token_id is 9999"),
        ({"model": "llama"}, "no tokenizer.ggml.scores"),
        ({"model": "llama", "scores": [0.0]}, "1 scores"),
    ],
)
def test_what_is_refused(bpe_metadata: dict[str, Any], change: dict[str, Any], match: str) -> None:
    metadata = bpe_metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(TokenizerError, match=match):
        tokenizer_files(metadata)


@pytest.mark.parametrize(
    "metadata",
    [{"general.architecture": "llama"}, {"tokenizer.ggml.model": "none"}],
)
def test_a_file_without_vocabulary_has_no_files(metadata: dict[str, Any]) -> None:
    assert tokenizer_files(metadata) == {}


def test_the_end_of_a_message_is_not_the_end_of_a_harmony_answer(
    bpe_metadata: dict[str, Any], tmp_path: Path
) -> None:
    tokens = bpe_metadata["tokenizer.ggml.tokens"]
    tokens[1] = "<|end|>"
    assert _load(bpe_metadata, tmp_path).eos_ids == (2, 1)
    tokens[0], tokens[2] = "<|call|>", "<|return|>"
    assert _load(bpe_metadata, tmp_path).eos_ids == (2, 0)


def test_control_tokens_of_phi3_take_the_spaces_after_them(
    train_sentencepiece: Any, gguf_of: Any, tmp_path: Path
) -> None:
    metadata = gguf_of(train_sentencepiece()) | {"general.architecture": "phi3"}
    tokenizer = _load(metadata, tmp_path)
    want = tokenizer.encode("<c>cat", parse_special=True)
    assert tokenizer.encode("<c>\n cat", parse_special=True) == want
    after_bos = tokenizer.encode("<s>\ncat", parse_special=True)
    assert tokenizer.decode(after_bos) == "\ncat"
