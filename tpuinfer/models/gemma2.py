"""Gemma 2 (arXiv:2408.00118): sandwich norms, soft caps, a window in every other layer."""

import math
from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_PERIOD = 2


def blueprint(config: ModelConfig) -> Decoder:
    """A norm before and one after each half of a layer; weights of norms are what is beyond 1."""

    def norm() -> blocks.RMSNorm:
        return blocks.RMSNorm(config.embed, config.norm_eps, offset=1.0, wide=True)

    def layer(c: ModelConfig, index: int) -> layers.Sandwich:
        return layers.Sandwich(blocks.Attention(c), blocks.GatedMLP(c), norm)

    return Decoder(config, layer, norm)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; a cap that it leaves out is the paper's, one of null is none."""
    entries = Entries(hf, "gemma2", _DEFAULTS)
    entries.refuse("use_bidirectional_attention")
    bias = entries.flag("attention_bias")
    return entries.config(
        activation=entries.activation("hidden_activation", "gelu_pytorch_tanh"),
        windows=entries.windows(entries.integer("sliding_window", 0), entries.layers(), _PERIOD),
        qkv_bias=bias,
        o_bias=bias,
        query_scale=1 / math.sqrt(entries.positive("query_pre_attn_scalar")),
        score_cap=entries.optional("attn_logit_softcapping"),
        logit_cap=entries.optional("final_logit_softcapping"),
        embed_scale=math.sqrt(entries.positive("hidden_size")),
    )


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)), names.GGML_SANDWICH, norms_add=-1.0)


FAMILY = Family(
    name="gemma2",
    title="Gemma 2",
    model_types=("gemma2",),
    examples=("google/gemma-2-2b-it", "google/gemma-2-9b-it"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("gemma2",),
    gguf_names=gguf_names,
)
