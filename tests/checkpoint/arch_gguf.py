"""Tiny GGUF files of every architecture, written with the gguf package as llama.cpp converts.

The keys follow `set_gguf_parameters` and the tensors `modify_tensors` of llama.cpp's conversion;
names of tensors are the gguf package's own, looked up by Hugging Face's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.models.names import stored_shape

Params = dict[str, NDArray[np.float32]]

_ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}

PERMUTED = ("llama", "smollm3", "granite")
"""Architectures whose conversion goes through LlamaModel.modify_tensors."""


@dataclass(frozen=True)
class Case:
    """A model and its file.

    Attributes:
      name: of the case. architecture: general.architecture.
      hf: the config.json that its conversion would start from.
      keys: of its architecture, beyond those that every conversion writes.
      tensors: beyond the parameters.
    """

    name: str
    architecture: str
    hf: dict[str, Any]
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[float]] = field(default_factory=dict)


def config(model_type: str, **entries: Any) -> dict[str, Any]:
    """Numbers that do not divide each other, with `entries` replacing some."""
    return {
        "model_type": model_type,
        "vocab_size": 71,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 20_000.0,
        "tie_word_embeddings": False,
    } | entries


_FACTORS = [1.0, 1.25, 2.0, 4.0, 8.0]
_SHORT, _LONG = [1.0, 1.5, 2.0], [2.0, 3.0, 5.0]
_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
_SLIDING, _FULL = "sliding_attention", "full_attention"

CASES = (
    Case("llama", "llama", config("llama", tie_word_embeddings=True)),
    Case(
        "llama biased",
        "llama",
        config("llama", attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    ),
    Case(
        "llama 3.1",
        "llama",
        config(
            "llama",
            rope_scaling={
                "rope_type": "longrope",
                "short_factor": _FACTORS,
                "long_factor": _FACTORS,
                "original_max_position_embeddings": 128,
                "attention_factor": 1.0,
            },
        ),
        tensors={"rope_freqs.weight": _FACTORS},
    ),
    Case(
        "llama linear",
        "llama",
        config("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
        keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    Case(
        "mistral",
        "llama",
        config("mistral", sliding_window=16),
        keys={"attention.sliding_window": 16},
    ),
    Case(
        "mixtral",
        "llama",
        config("mixtral", num_local_experts=5, num_experts_per_tok=2),
        keys={"expert_count": 5, "expert_used_count": 2},
    ),
    Case("qwen2", "qwen2", config("qwen2", tie_word_embeddings=True)),
    Case(
        "qwen2 yarn",
        "qwen2",
        config(
            "qwen2",
            rope_scaling={
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
        keys={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    Case("qwen3", "qwen3", config("qwen3")),
    Case(
        "qwen3moe",
        "qwen3moe",
        config(
            "qwen3_moe",
            num_experts=5,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        keys={"expert_count": 5, "expert_used_count": 2, "expert_feed_forward_length": 24},
    ),
    Case(
        "gemma2",
        "gemma2",
        config(
            "gemma2",
            tie_word_embeddings=True,
            query_pre_attn_scalar=10,
            sliding_window=12,
            attn_logit_softcapping=40.0,
            final_logit_softcapping=25.0,
            layer_types=[_SLIDING, _FULL, _SLIDING],
        ),
        keys={
            "attention.sliding_window": 12,
            "attn_logit_softcapping": 40.0,
            "final_logit_softcapping": 25.0,
        },
    ),
    Case(
        "gemma3",
        "gemma3",
        config(
            "gemma3_text",
            num_hidden_layers=7,
            num_key_value_heads=1,
            num_attention_heads=4,
            tie_word_embeddings=True,
            query_pre_attn_scalar=10,
            sliding_window=12,
            rope_theta=1e6,
            rope_local_base_freq=10_000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            layer_types=[_SLIDING] * 5 + [_FULL, _SLIDING],
        ),
        keys={
            "attention.sliding_window": 12,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    Case(
        "phi3",
        "phi3",
        config(
            "phi3",
            **_HEADS,
            sliding_window=20,
            partial_rotary_factor=0.75,
            original_max_position_embeddings=32,
            rope_scaling={
                "type": "longrope",
                "short_factor": _SHORT,
                "long_factor": _LONG,
                "attention_factor": 1.25,
            },
        ),
        keys={
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.25,
            "attention.sliding_window": 20,
        },
        tensors={"rope_factors_short.weight": _SHORT, "rope_factors_long.weight": _LONG},
    ),
    Case(
        "smollm3",
        "smollm3",
        config("smollm3", num_hidden_layers=5, tie_word_embeddings=True, no_rope_layer_interval=4),
    ),
    Case("olmo2", "olmo2", config("olmo2", **_HEADS)),
    Case(
        "granite",
        "granite",
        config(
            "granite",
            **_HEADS,
            tie_word_embeddings=True,
            attention_multiplier=0.25,
            embedding_multiplier=12.0,
            residual_multiplier=0.5,
            logits_scaling=8.0,
        ),
        keys={
            "attention.scale": 0.25,
            "embedding_scale": 12.0,
            "residual_scale": 0.5,
            "logit_scale": 8.0,
        },
    ),
    Case(
        "gpt-oss",
        "gpt-oss",
        config(
            "gpt_oss",
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=12,
            layer_types=[_SLIDING, _FULL, _SLIDING],
            rope_scaling={
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        ),
        keys={
            "attention.sliding_window": 12,
            "expert_count": 5,
            "expert_used_count": 2,
            "expert_feed_forward_length": 40,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
        },
    ),
)


def draw(hf: Mapping[str, Any], seed: int = 0) -> Params:
    """Random parameters of a model, of few binary digits: adding 1 to them loses nothing."""
    rng = np.random.default_rng(seed)
    blueprint = registry.build(registry.read_config(hf))
    return {
        name: (np.round(rng.standard_normal(one.shape) * 64) / 256).astype(np.float32)
        for name, one in weights(blueprint).items()
    }


def tensors_of(case: Case, params: Params) -> dict[str, NDArray[Any]]:
    """What llama.cpp's conversion writes, by name."""
    named = gguf.get_tensor_name_map(
        _ARCHITECTURES[case.architecture], case.hf["num_hidden_layers"]
    )
    found = {name: np.asarray(values, np.float32) for name, values in case.tensors.items()}
    for name, values in _published(case, params):
        ggml = named.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ggml is not None, name
        found[ggml if ggml.endswith((".weight", ".bias")) else f"{ggml}.weight"] = values
    return found


def _published(case: Case, params: Params) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors by Hugging Face's names, changed as the conversion changes them."""
    blueprint = weights(registry.build(registry.read_config(case.hf)))
    flat = {}
    for name, values in params.items():
        values = values.reshape(stored_shape(blueprint[name]))
        if case.architecture in PERMUTED and ".self_attn.q_proj." in name:
            values = permute(values, case.hf["num_attention_heads"])
        if case.architecture in PERMUTED and ".self_attn.k_proj." in name:
            values = permute(values, case.hf["num_key_value_heads"])
        if case.architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        flat[name if name.startswith("lm_head") else f"model.{name}"] = values
    if case.architecture == "phi3":
        flat = _fused(flat, case.hf["num_hidden_layers"])
    yield from flat.items()


def permute(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """LlamaModel.permute: row (half j, i) of a head goes to row 2 i + j."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _fused(flat: dict[str, NDArray[Any]], layers: int) -> dict[str, NDArray[Any]]:
    """Phi-3 as it is published."""
    for layer in range(layers):
        for into, parts in (
            ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj")),
            ("mlp.gate_up_proj", ("gate_proj", "up_proj")),
        ):
            room = f"model.layers.{layer}.{into.split('.')[0]}"
            rows = [flat.pop(f"{room}.{part}.weight") for part in parts]
            flat[f"model.layers.{layer}.{into}.weight"] = np.concatenate(rows)
    return flat


def keys_of(case: Case) -> dict[str, Any]:
    """Keys of the architecture, without its name."""
    hf = case.hf
    keys = {
        "block_count": hf["num_hidden_layers"],
        "context_length": hf["max_position_embeddings"],
        "embedding_length": hf["hidden_size"],
        "feed_forward_length": hf["intermediate_size"],
        "attention.head_count": hf["num_attention_heads"],
        "attention.head_count_kv": hf["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
        "rope.freq_base": hf["rope_theta"],
    }
    if case.architecture not in ("phi3", "olmo2", "granite"):
        keys |= dict.fromkeys(("attention.key_length", "attention.value_length"), hf["head_dim"])
    if case.architecture in PERMUTED:
        keys |= {"vocab_size": hf["vocab_size"], "rope.dimension_count": hf["head_dim"]}
    return keys | case.keys


def write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """A file by the gguf package's writer.

    Args:
      types: of tensors that are given as the bytes of their rows.
    """
    writer = gguf.GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for name, value in keys.items():
        full = f"{architecture}.{name}"
        if isinstance(value, list):
            writer.add_array(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        else:
            add[type(value)](full, value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_case(path: Path, case: Case, params: Params) -> Path:
    return write(path, case.architecture, keys_of(case), tensors_of(case, params))
