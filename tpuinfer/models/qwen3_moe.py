"""Qwen3's mixtures of experts (arXiv:2505.09388): Qwen3's attention, experts in most layers."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.experts import Mixture
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "sliding_window": 4096,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm; queries and keys are normalised head by head; some layers may have a plain MLP."""

    def layer(c: ModelConfig, index: int) -> layers.PreNorm:
        assert c.experts is not None
        normed = blocks.Attention(c, q_norm=blocks.HeadNorm(c), k_norm=blocks.HeadNorm(c))
        mlp = None if index in c.experts.dense_layers else Mixture(c)
        return layers.plain(c, normed, mlp)

    return Decoder(config, layer)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json, which may call the number of experts by either of two names."""
    entries = Entries(hf, "qwen3_moe", _DEFAULTS)
    bias = entries.flag("attention_bias")
    layers_ = entries.layers()
    sliding = entries.flag("use_sliding_window") and "sliding_window" in entries
    return entries.config(
        windows=(entries.integer("sliding_window"),) * layers_ if sliding else (),
        qkv_bias=bias,
        o_bias=bias,
        experts=_experts(entries, layers_),
    )


def _experts(entries: Entries, count: int) -> Experts:
    plain = entries.hf.get("mlp_only_layers", [])
    if not isinstance(plain, list) or not all(type(layer) is int for layer in plain):
        raise ConfigError(
            f"config.json has mlp_only_layers {str(plain)[:60]!r}: it must be a list of layers"
        )
    step = entries.integer("decoder_sparse_step")
    if step < 1:
        raise ConfigError(f"config.json has decoder_sparse_step {step}: it must be at least 1")
    dense = {*plain, *(layer for layer in range(count) if (layer + 1) % step)}
    name = "num_local_experts" if "num_local_experts" in entries else "num_experts"
    return Experts(
        count=entries.integer(name),
        active=entries.integer("num_experts_per_tok"),
        mlp=entries.integer("moe_intermediate_size"),
        normalise=entries.flag("norm_topk_prob"),
        dense_layers=tuple(sorted(dense)),
    )


def hf_names(config: ModelConfig) -> names.Names:
    """Each matrix of each expert is a tensor of its own."""
    ours = weights(blueprint(config))
    found = names.hugging_face(ours, lambda name: name.replace(".mlp.router.", ".mlp.gate."))
    for name, one in ours.items():
        layer, experts, rest = name.partition(".mlp.experts.")
        if experts:
            found |= names.stacked(name, one, f"model.{layer}{experts}{{}}.{rest}".format)
    return found


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)))


FAMILY = Family(
    name="qwen3_moe",
    title="Qwen3-MoE",
    model_types=("qwen3_moe",),
    examples=("Qwen/Qwen3-30B-A3B-Instruct-2507",),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("qwen3moe",),
    gguf_names=gguf_names,
)
