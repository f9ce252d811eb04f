"""Llama 2, 3, 3.1, 3.2 and what is built like them (arXiv:2302.13971, arXiv:2407.21783)."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, SwiGLU."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    entries = Entries(hf, "llama")
    entries.refuse("sliding_window", "layer_types")
    bias = entries.flag("attention_bias")
    return entries.config(qkv_bias=bias, o_bias=bias, mlp_bias=entries.flag("mlp_bias"))


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    rotary = ("self_attn.q_proj", "self_attn.k_proj")
    return names.ggml(weights(blueprint(config)), rotary=rotary)


FAMILY = Family(
    name="llama",
    title="Llama 2, 3, 3.1, 3.2, SmolLM2",
    model_types=("llama",),
    examples=("meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("llama",),
    gguf_names=gguf_names,
)
