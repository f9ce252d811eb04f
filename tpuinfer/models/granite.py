"""Granite 3 (github.com/ibm-granite/granite-3.0-language-models): Llama's layers, with multipliers.

The multipliers (arXiv:2203.03466) stand at the embedding, the scores, each half of a layer and the
logits.
"""

from collections.abc import Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, SwiGLU; what they give is scaled."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; a multiplier that is left out is 1, that of the scores too."""
    entries = Entries(hf, "granite", _DEFAULTS)
    divisor = entries.real("logits_scaling", 1.0)
    if divisor == 0:
        raise ConfigError("config.json has logits_scaling 0.0: logits are divided by it")
    bias = entries.flag("attention_bias")
    return entries.config(
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=entries.flag("mlp_bias"),
        query_scale=entries.real("attention_multiplier", 1.0),
        embed_scale=entries.real("embedding_multiplier", 1.0),
        residual_scale=entries.real("residual_multiplier", 1.0),
        logit_scale=1 / divisor,
    )


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    rotary = ("self_attn.q_proj", "self_attn.k_proj")
    return names.ggml(weights(blueprint(config)), rotary=rotary)


FAMILY = Family(
    name="granite",
    title="Granite 3.0, 3.1, 3.2, 3.3",
    model_types=("granite",),
    examples=("ibm-granite/granite-3.3-2b-instruct", "ibm-granite/granite-3.3-8b-instruct"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("granite",),
    gguf_names=gguf_names,
)
