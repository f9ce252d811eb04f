"""Mistral (arXiv:2310.06825): Llama's layers; in some versions they see the newest tokens only."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, SwiGLU."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; a window of null is none, and one left out is 4096."""
    entries = Entries(hf, "mistral", _DEFAULTS)
    entries.refuse("layer_types", "attention_bias", "mlp_bias")
    return entries.config(windows=entries.one_window())


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    rotary = ("self_attn.q_proj", "self_attn.k_proj")
    return names.ggml(weights(blueprint(config)), rotary=rotary)


FAMILY = Family(
    name="mistral",
    title="Mistral, Mistral Nemo",
    model_types=("mistral",),
    examples=("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-Nemo-Instruct-2407"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("llama",),
    gguf_names=gguf_names,
)
