"""OLMo 2 (arXiv:2501.00656): norms come after attention and MLP, and over all heads of q and k."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50_279}

_GGML = names.GGML_LAYER | {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def blueprint(config: ModelConfig) -> Decoder:
    """Post-norm, with norms that multiply before they round."""

    def norm() -> blocks.RMSNorm:
        return blocks.RMSNorm(config.embed, config.norm_eps, wide=True)

    def layer(c: ModelConfig, index: int) -> layers.PostNorm:
        attention = blocks.Attention(
            c,
            q_norm=blocks.FlatNorm(c.heads, c, "heads", wide=True),
            k_norm=blocks.FlatNorm(c.kv_heads, c, "kv_heads", wide=True),
        )
        return layers.PostNorm(attention, blocks.GatedMLP(c), norm)

    return Decoder(config, layer, norm)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    entries = Entries(hf, "olmo2", _DEFAULTS)
    entries.refuse("clip_qkv")
    bias = entries.flag("attention_bias")
    return entries.config(qkv_bias=bias, o_bias=bias)


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)), _GGML)


FAMILY = Family(
    name="olmo2",
    title="OLMo 2",
    model_types=("olmo2",),
    examples=("allenai/OLMo-2-0425-1B-Instruct", "allenai/OLMo-2-1124-7B-Instruct"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("olmo2",),
    gguf_names=gguf_names,
)
