"""Tiny vocabularies: a byte-level BPE given as GGUF metadata, and trained SentencePiece models."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

from tpuinfer.tokenizer.gguf_vocab import tokenizer_files

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["hello world the cat sat on the mat", "the quick brown fox", "a cat and a dog"] * 20


def _byte_alphabet() -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in shown}
    for b in range(256):
        names.setdefault(b, chr(256 + sum(1 for other in range(b) if other not in shown)))
    return [names[b] for b in range(256)]


@pytest.fixture
def bpe_metadata() -> dict[str, Any]:
    """Ids 0-2 are control, 3-258 the bytes in order, then merges, then one user-defined token."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ã ©", "1 2"]
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_alphabet(), *merged, "<tool>"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 4) + [4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write files (bytes, or values that become JSON) into one directory, and return it."""

    def write(**files: Any) -> Path:
        for name, value in files.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            stem, _, suffix = name.rpartition("_")
            (tmp_path / f"{stem}.{suffix}").write_bytes(data)
        return tmp_path

    return write


@pytest.fixture
def bpe_dir(bpe_metadata: dict[str, Any], tmp_path: Path) -> Path:
    for name, data in tokenizer_files(bpe_metadata).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., bytes]:
    """A SentencePiece BPE with byte fallback, control token <c> and user-defined token <u>."""

    def train(**options: Any) -> bytes:
        model = io.BytesIO()
        defaults: dict[str, Any] = {
            "vocab_size": 330,
            "hard_vocab_limit": False,
            "model_type": "bpe",
            "byte_fallback": True,
            "control_symbols": ["<c>"],
            "user_defined_symbols": ["<u>"],
            "remove_extra_whitespaces": False,
            "normalization_rule_name": "identity",
            "minloglevel": 2,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_CORPUS), model_writer=model, **defaults | options
        )
        return model.getvalue()

    return train


@pytest.fixture(scope="session")
def gguf_of() -> Callable[[bytes], dict[str, Any]]:
    """SentencePiece model -> the metadata that llama.cpp's converter would write for it."""

    def gguf_of(model: bytes) -> dict[str, Any]:
        pieces = pb.ModelProto.FromString(model).pieces
        texts = [p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in pieces]
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": np.array([p.score for p in pieces], np.float32),
            "tokenizer.ggml.token_type": np.array([p.type for p in pieces], np.int32),
            "tokenizer.ggml.bos_token_id": np.uint32(1),
            "tokenizer.ggml.eos_token_id": np.uint32(2),
            "tokenizer.ggml.unknown_token_id": np.uint32(0),
        }

    return gguf_of
