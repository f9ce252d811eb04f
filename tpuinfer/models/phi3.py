"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (arXiv:2404.14219, arXiv:2412.08905, arXiv:2503.01743).

Checkpoints keep queries, keys and values in one tensor, and gate and up in another.
"""

from collections.abc import Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig, Rope
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 32_000,
}

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_HF = {
    "model.layers.{}.self_attn.qkv_proj.weight": _QKV,
    "model.layers.{}.mlp.gate_up_proj.weight": _GATE_UP,
}
_GGML = {"blk.{}.attn_qkv.weight": _QKV, "blk.{}.ffn_up.weight": _GATE_UP}
"""Fused tensors of a layer, and what they hold in its order."""


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, SwiGLU."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; no window where none is stated."""
    entries = Entries(hf, "phi3", _DEFAULTS)
    entries.refuse("layer_types", "attention_bias", "mlp_bias", "lm_head_bias")
    return entries.config(rope=_rope(entries), windows=entries.one_window())


def _rope(entries: Entries) -> Rope:
    """Plain or longrope, which the first checkpoints call "su" or "yarn"."""
    stated = entries.stated_rope()
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "longrope", "su", "yarn"):
        raise ConfigError(f"config.json has rope_scaling {kind!r}: phi3 has longrope or none")
    named = {"rope_type": "longrope" if kind != "default" else kind}
    return entries.rope(stated | named, partial=True)


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config))) | _fused(config, _HF)


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config))) | _fused(config, _GGML)


def _fused(
    config: ModelConfig, tensors: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[names.Part, ...]]:
    """Names of what lies in fused tensors, in every layer."""
    ours = weights(blueprint(config))
    found: dict[str, tuple[names.Part, ...]] = {}
    for index in range(config.layers):
        for tensor, modules in tensors.items():
            own = tuple(f"layers.{index}.{module}.weight" for module in modules)
            found |= names.fused(ours, own, tensor.format(index))
    return found


FAMILY = Family(
    name="phi3",
    title="Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    model_types=("phi3",),
    examples=("microsoft/Phi-3.5-mini-instruct", "microsoft/Phi-4-mini-instruct"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("phi3",),
    gguf_names=gguf_names,
)
