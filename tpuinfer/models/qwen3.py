"""Qwen 3 (arXiv:2505.09388): each head's queries and keys are normalised before they turn."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention with norms of heads, SwiGLU."""

    def layer(c: ModelConfig, index: int) -> layers.PreNorm:
        normed = blocks.Attention(c, q_norm=blocks.HeadNorm(c), k_norm=blocks.HeadNorm(c))
        return layers.plain(c, normed)

    return Decoder(config, layer)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    entries = Entries(hf, "qwen3", _DEFAULTS)
    bias = entries.flag("attention_bias")
    first = entries.integer("max_window_layers")
    windows = entries.switched_windows(lambda index: index >= first)
    return entries.config(qkv_bias=bias, o_bias=bias, windows=windows)


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)))


FAMILY = Family(
    name="qwen3",
    title="Qwen 3",
    model_types=("qwen3",),
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("qwen3",),
    gguf_names=gguf_names,
)
