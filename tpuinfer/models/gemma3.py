"""Gemma 3 (arXiv:2503.19786), the text model: five layers with a window to one without."""

import math
from collections.abc import Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig, Rope
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family, Wrapped
from tpuinfer.models.hf_config import Entries

_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"

_OF_THE_WHOLE = (
    *("dtype", "torch_dtype", "quantization_config", "transformers_version"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)
"""What a multimodal config.json states for its text model too."""


def blueprint(config: ModelConfig) -> Decoder:
    """Gemma 2's layers; queries and keys are normalised head by head."""

    def norm() -> blocks.RMSNorm:
        return blocks.RMSNorm(config.embed, config.norm_eps, offset=1.0, wide=True)

    def head_norm() -> blocks.HeadNorm:
        return blocks.HeadNorm(config, offset=1.0, wide=True)

    def layer(c: ModelConfig, index: int) -> layers.Sandwich:
        attention = blocks.Attention(c, q_norm=head_norm(), k_norm=head_norm())
        return layers.Sandwich(attention, blocks.GatedMLP(c), norm)

    return Decoder(config, layer, norm)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json, that of a multimodal checkpoint included.

    Raises:
      ConfigError: also for attn_logit_softcapping, which the reference reads and does not apply.
    """
    if hf.get("model_type") == "gemma3":
        hf = text_config(hf)
    entries = Entries(hf, "gemma3", _DEFAULTS)
    entries.refuse("use_bidirectional_attention", "attn_logit_softcapping")
    bias = entries.flag("attention_bias")
    rope, local_rope = _ropes(entries)
    return entries.config(
        activation=entries.activation("hidden_activation", "gelu_pytorch_tanh"),
        rope=rope,
        local_rope=local_rope,
        windows=entries.windows(
            entries.integer("sliding_window", 0),
            entries.layers(),
            entries.integer("sliding_window_pattern"),
        ),
        qkv_bias=bias,
        o_bias=bias,
        query_scale=1 / math.sqrt(entries.positive("query_pre_attn_scalar")),
        logit_cap=entries.optional("final_logit_softcapping"),
        embed_scale=math.sqrt(entries.positive("hidden_size")),
    )


def text_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text model inside a multimodal checkpoint.

    Raises:
      ConfigError: it has no text_config.
    """
    own = hf.get("text_config")
    if not isinstance(own, Mapping):
        raise ConfigError(
            f"config.json has text_config {str(own)[:40]!r}: gemma3 needs an object of entries"
        )
    shared = {name: hf[name] for name in _OF_THE_WHOLE if hf.get(name) is not None}
    kind = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return {**own, **shared, **kind}


def _ropes(entries: Entries) -> tuple[Rope, Rope]:
    """Of layers without a window and of layers with one, in either way of writing them.

    rope_parameters holds both by kind of layer; before, rope_theta and rope_scaling were those of
    the first, and rope_local_base_freq of the others.
    """
    stated = entries.mapping("rope_parameters")
    kinds = stated.keys() <= {_GLOBAL, _LOCAL}
    if not kinds or not all(isinstance(one, dict | None) for one in stated.values()):
        raise ConfigError(
            f"config.json has rope_parameters {str(stated)[:60]!r}: gemma3 needs {_GLOBAL} and "
            f"{_LOCAL} in it, and nothing else"
        )
    far = {**(stated.get(_GLOBAL) or {}), **entries.mapping("rope_scaling")}
    near = stated.get(_LOCAL) or {}
    return (
        entries.rope(far),
        entries.rope(near, theta=entries.positive("rope_local_base_freq")),
    )


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    return names.ggml(weights(blueprint(config)), names.GGML_SANDWICH, norms_add=-1.0)


FAMILY = Family(
    name="gemma3",
    title="Gemma 3 (text)",
    model_types=("gemma3_text", "gemma3"),
    examples=("google/gemma-3-1b-it", "google/gemma-3-4b-it", "google/gemma-3-27b-it"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("gemma3",),
    gguf_names=gguf_names,
    wrapped=Wrapped(
        model_type="gemma3",
        config=text_config,
        renamed=(
            (r"(?:model\.language_model|language_model\.model)\.(.+)", r"model.\1"),
            (r"language_model\.(lm_head\..+)", r"\1"),
        ),
        unread=r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..+",
        note="vision tower not read: text only",
    ),
)
