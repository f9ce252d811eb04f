"""GGUF tensor names, shapes and metadata -> ours. One architecture: "llama".

All that does not fit is collected and shown together, so that a user sees one full answer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tpuinfer.checkpoint.gguf import GgufFile
from tpuinfer.errors import CheckpointError

_SHOWN = 8

_KNOWN_KEYS = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.causal",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scale_linear",
        "expert_count",
        "expert_used_count",
        "tensor_data_layout",
        "use_parallel_residual",
    }
)


@dataclass(frozen=True)
class Dims:
    """The numbers of a llama-architecture model.

    Attributes:
      V: vocabulary. D: embed. F: mlp. L: layers. N: query heads. K: KV heads. H: head dim.
      context: tokens. theta: rotary base. eps: of the norms. tied: the head is the embedding.
    """

    V: int
    D: int
    F: int
    L: int
    N: int
    K: int
    H: int
    context: int
    theta: float
    eps: float
    tied: bool


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from.

    Attributes:
      tensor: its name in the GGUF file.
      stored: its shape there.
      shape: its shape here; the same elements in the same order.
      rotary: its rows are permuted for ggml's interleaved rotary embedding.
    """

    tensor: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    rotary: bool = False


def describe(file: GgufFile) -> Dims:
    """The dimensions that a GGUF file's metadata states.

    Raises:
      CheckpointError: another architecture, a feature that is not supported, or a key that is
        missing, wrong or unknown; all of them in one message.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{file.path}: architecture {architecture!r} is not supported; supported: 'llama'"
        )
    keys = _Keys(file.metadata)
    problems = keys.problems
    problems.extend(_unsupported(file))
    D, N = keys.integer("embedding_length"), keys.integer("attention.head_count")
    K = keys.integer("attention.head_count_kv", N)
    H = keys.integer("attention.key_length", D // N or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := keys.integer(name, H)) != H:
            problems.append(f"llama.{name} is {value}, but the heads are {H} wide")
    if N % K:
        problems.append(f"{N} query heads are no multiple of {K} KV heads")
    if H % 2:
        problems.append(f"heads are {H} wide, which must be even")
    L = keys.integer("block_count")
    if len(file.tensors) < L:
        problems.append(f"llama.block_count is {L}, with {len(file.tensors)} tensors in the file")
    embedding = file.tensors.get("token_embd.weight")
    V = embedding.shape[0] if embedding else keys.integer("vocab_size")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > V:
        problems.append(f"the vocabulary has {len(tokens)} tokens and the embedding {V} rows")
    dims = Dims(
        V, D, keys.integer("feed_forward_length"), L, N, K, H,
        context=keys.integer("context_length"),
        theta=keys.real("rope.freq_base", 10_000.0),
        eps=keys.real("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in file.tensors,
    )  # fmt: skip
    _raise(file, problems)
    return dims


def plan(file: GgufFile, dims: Dims) -> dict[str, Source]:
    """Our parameter names -> where each comes from.

    Raises:
      CheckpointError: tensors that are missing, unexpected or of another shape, all in one message.
    """
    sources = dict(_sources(dims))
    wanted = {source.tensor: source for source in sources.values()}
    problems = [f"tensor {name} is missing" for name in wanted if name not in file.tensors]
    for name, tensor in file.tensors.items():
        if name not in wanted:
            problems.append(f"tensor {name} {list(tensor.shape)} is not part of a llama model")
        elif tensor.shape != wanted[name].stored:
            problems.append(
                f"tensor {name} has shape {list(tensor.shape)}, not {list(wanted[name].stored)}"
            )
    _raise(file, problems)
    return sources


def read_param(file: GgufFile, source: Source, dtype: DTypeLike) -> NDArray[Any]:
    """One parameter in our shape, layout and the given dtype."""
    values = file.read(source.tensor, dtype)
    if source.rotary:
        values = unpermute(values.reshape(source.shape))
    return values.reshape(source.shape)


def unpermute(rows: NDArray[Any]) -> NDArray[Any]:
    """[heads, H, D] from ggml's interleaved rotary layout to Hugging Face's half-rotation layout.

    Rotary pair i is rows (2i, 2i + 1) of a head there and rows (i, i + H/2) here:

        ggml  a0 b0 a1 b1 a2 b2        pairs side by side
        ours  a0 a1 a2 b0 b1 b2        first halves, then second halves
    """
    heads, H, D = rows.shape
    pairs = rows.reshape(heads, H // 2, 2, D)
    return pairs.swapaxes(1, 2).reshape(heads, H, D)


def hf_config(dims: Dims, metadata: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json that Hugging Face would write for this model, stored as `dtype`."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": dims.V,
        "hidden_size": dims.D,
        "intermediate_size": dims.F,
        "num_hidden_layers": dims.L,
        "num_attention_heads": dims.N,
        "num_key_value_heads": dims.K,
        "head_dim": dims.H,
        "max_position_embeddings": dims.context,
        "rope_theta": dims.theta,
        "rms_norm_eps": dims.eps,
        "tie_word_embeddings": dims.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
    }
    for key in ("bos_token_id", "eos_token_id"):
        token = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(token, int):
            config[key] = token
    return config


def _sources(dims: Dims) -> Iterator[tuple[str, Source]]:
    V, D, F, N, K, H = dims.V, dims.D, dims.F, dims.N, dims.K, dims.H
    yield "embed_tokens.weight", Source("token_embd.weight", (V, D), (V, D))
    for i in range(dims.L):
        ours, ggml = f"layers.{i}.", f"blk.{i}."
        for name, tensor, stored, shape, rotary in (
            ("input_layernorm", "attn_norm", (D,), (D,), False),
            ("self_attn.q_proj", "attn_q", (N * H, D), (N, H, D), True),
            ("self_attn.k_proj", "attn_k", (K * H, D), (K, H, D), True),
            ("self_attn.v_proj", "attn_v", (K * H, D), (K, H, D), False),
            ("self_attn.o_proj", "attn_output", (D, N * H), (D, N, H), False),
            ("post_attention_layernorm", "ffn_norm", (D,), (D,), False),
            ("mlp.gate_proj", "ffn_gate", (F, D), (F, D), False),
            ("mlp.up_proj", "ffn_up", (F, D), (F, D), False),
            ("mlp.down_proj", "ffn_down", (D, F), (D, F), False),
        ):
            yield f"{ours}{name}.weight", Source(f"{ggml}{tensor}.weight", stored, shape, rotary)
    yield "norm.weight", Source("output_norm.weight", (D,), (D,))
    if not dims.tied:
        yield "lm_head.weight", Source("output.weight", (V, D), (V, D))


def _unsupported(file: GgufFile) -> list[str]:
    """Features of llama-architecture files that would change the numbers and are not built."""
    metadata = file.metadata
    problems = []
    if "rope_freqs.weight" in file.tensors:
        problems.append("rope scaling (tensor rope_freqs.weight, as in Llama 3.1) is not supported")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    factors = [
        metadata.get(f"llama.{key}", 1.0) for key in ("rope.scaling.factor", "rope.scale_linear")
    ]
    if scaling != "none" or any(factor not in (0.0, 1.0) for factor in factors):
        problems.append(f"rope scaling ({scaling!r}, factors {factors}) is not supported")
    for key, what in (
        ("llama.expert_count", "a mixture of experts"),
        ("llama.attention.sliding_window", "a sliding window"),
        ("llama.use_parallel_residual", "a parallel residual"),
    ):
        if metadata.get(key):
            problems.append(f"{what} ({key} = {metadata[key]!r}) is not supported")
    if metadata.get("llama.attention.causal", True) is not True:
        problems.append("attention that is not causal is not supported")
    if metadata.get("split.count", 0) not in (0, 1):
        problems.append(
            f"the file is one of {metadata['split.count']} parts: merge them first "
            "(llama-gguf-split --merge)"
        )
    problems.extend(
        f"metadata key {key} is not known here, and may change the numbers"
        for key in metadata
        if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN_KEYS
    )
    return problems


class _Keys:
    """Typed reads of `llama.*` metadata that collect what is wrong; 1 stands in for what is."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self._metadata = metadata
        self.problems: list[str] = []

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._metadata.get(f"llama.{key}", default)
        if type(value) is int and 1 <= value < 2**31:
            return value
        self._note(key, value, "an integer of at least 1")
        return 1

    def real(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(f"llama.{key}", default)
        if isinstance(value, float) and math.isfinite(value) and value > 0:
            return float(str(np.float32(value)))
        self._note(key, value, "a number above 0")
        return 1.0

    def _note(self, key: str, value: object, rule: str) -> None:
        found = "missing" if value is None else f"{str(value)[:60]}"
        self.problems.append(f"metadata key llama.{key} is {found}; it must be {rule}")


def _raise(file: GgufFile, problems: list[str]) -> None:
    if not problems:
        return
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise CheckpointError(f"{file.path}: {'; '.join(problems[:_SHOWN])}{more}")
