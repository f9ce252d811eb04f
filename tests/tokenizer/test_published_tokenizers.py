"""Tokenizer files in the forms that well-known repositories publish, on miniature vocabularies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tpuinfer.tokenizer.load import load_tokenizer

Write = Callable[..., Path]


def added(content: str, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens_decoder."""
    rest = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **rest, **flags, "special": special}


NAMED = {"0": added("<|endoftext|>"), "1": added("<|im_start|>"), "2": added("<|im_end|>")}
LLAMA3 = {
    "tokenizer_config_json": {
        "added_tokens_decoder": NAMED,
        "bos_token": "<|endoftext|>",
        "chat_template": "{{- bos_token }}{{ messages[0].content | trim }}",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|im_end|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "special_tokens_map_json": {
        "bos_token": {"content": "<|endoftext|>", "lstrip": False},
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
    },
    "generation_config_json": {"bos_token_id": 0, "eos_token_id": [0, 1, 2], "temperature": 0.6},
    "config_json": {"eos_token_id": [0, 1, 2]},
}
QWEN3 = {
    "tokenizer_config_json": {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {**NAMED, "266": added("<tool>", special=False)},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": "{{ messages[0].content }}<|im_end|>",
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    },
    "generation_config_json": {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0},
    "config_json": {"bos_token_id": 0, "eos_token_id": 2},
}
GEMMA3 = {
    "tokenizer_config_json": {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": NAMED,
        "additional_special_tokens": None,
        "boi_token": "<start_of_image>",
        "bos_token": "<|endoftext|>",
        "chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "eos_token": "<|im_start|>",
        "extra_special_tokens": {"boi_token": "<start_of_image>", "image_token": "<image>"},
        "image_token": "<image>",
        "sp_model_kwargs": None,
    },
    "generation_config_json": {"cache_implementation": "hybrid", "eos_token_id": [1, 2]},
    "config_json": {"eos_token_id": [1, 2], "model_type": "gemma3"},
}
HERMES = {
    "tokenizer_config_json": {
        **QWEN3["tokenizer_config_json"],
        "chat_template": [
            {"name": "default", "template": "{{ messages[0].content }}<|im_end|>"},
            {"name": "tool_use", "template": "{{ tools }}"},
        ],
    },
    "config_json": {"eos_token_id": 2},
}


@pytest.mark.parametrize(
    ("files", "bos", "prefix", "ends", "prompt"),
    [
        (LLAMA3, 0, (), (0, 1, 2), [0]),
        (QWEN3, None, (), (2, 0), []),
        (GEMMA3, 0, (0,), (1, 2), [0]),
        (HERMES, None, (), (2,), []),
    ],
    ids=["Llama 3", "Qwen 3", "Gemma 3", "Hermes"],
)
def test_what_each_family_publishes(
    write: Write,
    bpe_dir: Path,
    files: dict[str, Any],
    bos: int | None,
    prefix: tuple[int, ...],
    ends: tuple[int, ...],
    prompt: list[int],
) -> None:
    tokenizer = load_tokenizer(write(**files), vocab_size=300)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, ends)
    assert tokenizer.prefix_ids == prefix
    words = tokenizer.encode("hello", add_special_tokens=False)
    rendered = tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    assert rendered[: len(prompt) + len(words)] == prompt + words
    assert 2 not in tokenizer.encode_chat([{"role": "user", "content": "<|im_end|>"}])[:-1]


def xlm_roberta() -> dict[str, Any]:
    """tokenizer.json as it is made of XLM-RoBERTa's SentencePiece model: unigrams, no bytes."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "a", "b", "\u2581a", "\u2581ab", ":"]
    framed = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>")]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    entries = [{"id": i, **added(pieces[i])} for i in range(4)]
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": entries,
        "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [framed[0], {"Sequence": {"id": "A", "type_id": 0}}, framed[1]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
            },
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "vocab": [[piece, -float(i)] for i, piece in enumerate(pieces)],
            "byte_fallback": False,
        },
    }


def test_the_vocabulary_of_a_multilingual_encoder(write: Write) -> None:
    """It has fewer ids than its embedding has rows, and is cut to no length of its own."""
    config = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    folder = write(tokenizer_json=xlm_roberta(), tokenizer_config_json=config)
    tokenizer = load_tokenizer(folder, vocab_size=16)
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids) == ((0,), (2,))
    library = tokenizers.Tokenizer.from_str(json.dumps(xlm_roberta()))
    library.no_truncation()
    ids = tokenizer.encode("ab: a  b ab")
    assert ids == library.encode("ab: a  b ab").ids
    assert tokenizer.decode(ids) == "ab: a b ab"
    assert 0 not in tokenizer.encode("<s>", add_special_tokens=False)
