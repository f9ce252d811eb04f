"""A GGUF writer of a few lines, and a two-layer llama model in GGUF with random weights."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize

V, D, F, L, N, K, H = 96, 64, 128, 2, 4, 2, 16

F32, F16, Q8_0 = 0, 1, 8


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(value: Any) -> bytes:
    """Type and payload of one metadata value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value) if value < 0 else struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [value_of(item) for item in value]
    kind = items[0][:4] if items else struct.pack("<I", 4)
    return (
        struct.pack("<I", 9)
        + kind
        + struct.pack("<Q", len(items))
        + b"".join(item[4:] for item in items)
    )


def gguf_bytes(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[np.ndarray, int]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; `tensors` maps name -> (float32 values, ggml type)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += text(key) + value_of(value)
    body = b""
    for name, (values, kind) in tensors.items():
        data = quantize(values.astype(np.float32), GGMLQuantizationType(kind)).tobytes()
        head += text(name) + struct.pack("<I", values.ndim)
        head += struct.pack(f"<{values.ndim}Q", *values.shape[::-1])
        head += struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + body


def llama_metadata() -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.block_count": L,
        "llama.context_length": 256,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": N,
        "llama.attention.head_count_kv": K,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": H,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_tensors(*, tied: bool = True, seed: int = 0) -> dict[str, tuple[np.ndarray, int]]:
    """Random weights under ggml's names and in ggml's layout."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, kind: int = F32) -> tuple[np.ndarray, int]:
        return rng.standard_normal(shape).astype(np.float32), kind

    tensors = {"token_embd.weight": draw(V, D, kind=Q8_0), "output_norm.weight": draw(D)}
    for i in range(L):
        tensors |= {
            f"blk.{i}.attn_norm.weight": draw(D),
            f"blk.{i}.attn_q.weight": draw(N * H, D),
            f"blk.{i}.attn_k.weight": draw(K * H, D, kind=F16),
            f"blk.{i}.attn_v.weight": draw(K * H, D),
            f"blk.{i}.attn_output.weight": draw(D, N * H),
            f"blk.{i}.ffn_norm.weight": draw(D),
            f"blk.{i}.ffn_gate.weight": draw(F, D),
            f"blk.{i}.ffn_up.weight": draw(F, D),
            f"blk.{i}.ffn_down.weight": draw(D, F),
        }
    if not tied:
        tensors["output.weight"] = draw(V, D)
    return tensors


def write_llama(path: Path, *, tied: bool = True, seed: int = 0, **metadata: Any) -> Path:
    """A tiny llama GGUF file; `metadata` adds or replaces keys, with __ for a dot."""
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    path.write_bytes(gguf_bytes(llama_metadata() | keys, llama_tensors(tied=tied, seed=seed)))
    return path
