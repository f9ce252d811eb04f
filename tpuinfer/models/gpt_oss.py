"""GPT-OSS (arXiv:2508.10925): windows in every other layer, learned sinks, biased experts."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.models import blocks, layers, names
from tpuinfer.models.blueprint import Weight, weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.experts import Mixture
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries
from tpuinfer.models.names import Part

_DEFAULTS = {
    "head_dim": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "sliding_window": 128,
    "attention_bias": True,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}

_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Of Hugging Face's config class, where a config states nothing."""

_SINKS = ".self_attn.sinks"


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, with norms that multiply before they round."""

    def norm() -> blocks.RMSNorm:
        return blocks.RMSNorm(config.embed, config.norm_eps, wide=True)

    def layer(c: ModelConfig, index: int) -> layers.PreNorm:
        return layers.PreNorm(blocks.Attention(c, sinks=True), Mixture(c, clamped=True), norm)

    return Decoder(config, layer, norm)


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json.

    Raises:
      ConfigError: also for a gate with other constants than the published models'.
    """
    entries = Entries(hf, "gpt_oss", _DEFAULTS)
    for name in ("swiglu_alpha", "swiglu_limit"):
        if entries.real(name) != _DEFAULTS[name]:
            raise ConfigError(
                f"config.json has {name} {entries.hf[name]!r}: gpt_oss is supported with "
                f"{_DEFAULTS[name]} only"
            )
    stated = entries.stated_rope()
    bias = entries.flag("attention_bias")
    count = entries.layers()
    if "layer_types" not in entries:
        kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(count)]
        entries.hf["layer_types"] = kinds
    mlp = entries.integer("intermediate_size")
    return entries.config(
        rope=entries.rope(stated or _ROPE),
        windows=entries.windows(entries.integer("sliding_window"), count),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        experts=Experts(
            entries.integer("num_local_experts"), entries.integer("num_experts_per_tok"), mlp
        ),
    )


def hf_names(config: ModelConfig) -> names.Names:
    """Experts are stacked, inputs before outputs; gate and up alternate along the outputs."""
    ours = weights(blueprint(config))
    plain = {name: one for name, one in ours.items() if ".experts." not in name}
    found = names.hugging_face(plain)
    for name in ours.keys() - plain.keys():
        found[name] = (_expert_part(name, ours[name]),)
    return found


def _expert_part(name: str, one: Weight) -> Part:
    """A block of experts.gate_up_proj [E, D, 2F] or down_proj [E, F, D], or of their biases."""
    path, matrix, kind = name.rsplit(".", 2)
    tensor = f"model.{path}.{{}}" + ("_bias" if kind == "bias" else "")
    swap = kind == "weight"
    if matrix == "down_proj":
        shape = (one.shape[0], *one.shape[:0:-1])
        return Part(tensor.format(matrix), shape, swap=swap)
    both = 2 * one.shape[1]
    shape = (one.shape[0], *one.shape[2:], both)
    start = ("gate_proj", "up_proj").index(matrix)
    return Part(
        tensor.format("gate_up_proj"), shape, (start, both, 2), axis=len(shape) - 1, swap=swap
    )


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    ours = weights(blueprint(config))
    sinks = {name: one for name, one in ours.items() if name.endswith(_SINKS)}
    table = {**names.GGML_LAYER, "post_attention_layernorm": "post_attention_norm"}
    found = names.ggml({name: ours[name] for name in ours.keys() - sinks.keys()}, table)
    for name, one in sinks.items():
        layer = name.removesuffix(_SINKS).removeprefix("layers.")
        found[name] = (Part(f"blk.{layer}.attn_sinks.weight", one.shape),)
    return found


FAMILY = Family(
    name="gpt_oss",
    title="GPT-OSS",
    model_types=("gpt_oss",),
    examples=("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("gpt-oss",),
    gguf_names=gguf_names,
)
