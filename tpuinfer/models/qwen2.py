"""Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115): queries, keys and values have biases."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention with biases on what comes in, SwiGLU."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    entries = Entries(hf, "qwen2", _DEFAULTS)
    first = entries.integer("max_window_layers")
    windows = entries.switched_windows(lambda index: index >= first)
    return entries.config(qkv_bias=True, windows=windows)


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)))


FAMILY = Family(
    name="qwen2",
    title="Qwen 2, 2.5",
    model_types=("qwen2",),
    examples=("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("qwen2",),
    gguf_names=gguf_names,
)
