"""Mixtral (arXiv:2401.04088): Mistral's layers with experts in place of the MLP."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.model_config import Experts, ModelConfig
from tpuinfer.models import layers, names
from tpuinfer.models.blueprint import weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.experts import Mixture
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries

_EXPERT = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Our names of an expert's matrices -> Mixtral's."""

_DEFAULTS = {
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def blueprint(config: ModelConfig) -> Decoder:
    """Pre-norm, grouped-query attention, experts in every layer."""
    return Decoder(config, lambda c, _: layers.plain(c, mlp=Mixture(c)))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Numbers of a config.json; the window, where there is one, is that of every layer."""
    entries = Entries(hf, "mixtral", _DEFAULTS)
    window = entries.integer("sliding_window", 0)
    mlp = entries.integer("intermediate_size")
    count, active = (entries.integer(n) for n in ("num_local_experts", "num_experts_per_tok"))
    return entries.config(
        windows=(window,) * entries.layers() if window else (),
        experts=Experts(count, active, mlp),
    )


def hf_names(config: ModelConfig) -> names.Names:
    """Each matrix of each expert is a tensor of its own."""
    ours = weights(blueprint(config))

    def rename(name: str) -> str:
        return name.replace(".mlp.router.", ".block_sparse_moe.gate.")

    found = names.hugging_face(ours, rename)
    for name, one in ours.items():
        layer, _, rest = name.partition(".mlp.experts.")
        if rest:
            tensor = (
                f"model.{layer}.block_sparse_moe.experts.{{}}.{_EXPERT[rest.split('.')[0]]}.weight"
            )
            found |= names.stacked(name, one, tensor.format)
    return found


def gguf_names(config: ModelConfig, architecture: str) -> names.Names:
    rotary = ("self_attn.q_proj", "self_attn.k_proj")
    return names.ggml(weights(blueprint(config)), rotary=rotary)


FAMILY = Family(
    name="mixtral",
    title="Mixtral",
    model_types=("mixtral",),
    examples=("mistralai/Mixtral-8x7B-Instruct-v0.1",),
    read_config=read_config,
    blueprint=blueprint,
    hf_names=hf_names,
    architectures=("llama",),
    gguf_names=gguf_names,
)
