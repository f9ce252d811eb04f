"""SmolLM3 (huggingface.co/blog/smollm3): Llama's layers; every fourth has no rotary positions."""

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
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 2e6,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, SwiGLU."""
    return Decoder(config, lambda c, _: layers.plain(c))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; with a window it is the unrotated layers that have it."""
    entries = Entries(hf, "smollm3", _DEFAULTS)
    unrotated = _unrotated(entries)
    bias = entries.flag("attention_bias")
    return entries.config(
        unrotated=unrotated,
        windows=entries.switched_windows(lambda index: index in unrotated),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=entries.flag("mlp_bias"),
    )


def _unrotated(entries: Entries) -> tuple[int, ...]:
    """Layers marked 0 in `no_rope_layers`, or else the last of each `no_rope_layer_interval`."""
    count = entries.layers()
    name = "no_rope_layers"
    if name not in entries:
        every = entries.integer("no_rope_layer_interval")
        if every < 1:
            raise ConfigError(f"config.json has no_rope_layer_interval {every}: at least 1")
        return tuple(range(every - 1, count, every))
    turned = entries.required(name)
    if not isinstance(turned, list) or len(turned) < count or {*turned} - {0, 1}:
        raise ConfigError(
            f"config.json has {name} {str(turned)[:60]!r}: it must have a 1 (rotated) or a 0 for "
            f"each of {count} layers"
        )
    return tuple(index for index in range(count) if not turned[index])


def hf_names(config: ModelConfig) -> names.Names:
    return names.hugging_face(weights(blueprint(config)))


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    rotary = ("self_attn.q_proj", "self_attn.k_proj")
    return names.ggml(weights(blueprint(config)), rotary=rotary)


FAMILY = Family(
    name="smollm3",
    title="SmolLM3",
    model_types=("smollm3",),
    examples=("HuggingFaceTB/SmolLM3-3B",),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("smollm3",),
    gguf_names=gguf_names,
)
