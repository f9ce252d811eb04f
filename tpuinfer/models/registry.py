"""Which families there are, and which one a config.json asks for."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.config import ModelConfig
from tpuinfer.errors import ConfigError
from tpuinfer.models import llama

_READERS = {"llama": llama.read_config}
_BLUEPRINTS = {"llama": llama.Llama}


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """Read a checkpoint's config.json.

    Raises:
      ConfigError: the model type is not one of ours, or the config is not complete.
    """
    family = hf.get("model_type")
    reader = _READERS.get(str(family))
    if reader is None:
        raise ConfigError(
            f"config.json has model_type {family!r}: supported are {', '.join(_READERS)}"
        )
    return reader(hf)


def build(config: ModelConfig) -> llama.Llama:
    """The blueprint of a model: shapes and axes, no arrays."""
    return _BLUEPRINTS[config.family](config)


def axis_sizes(config: ModelConfig, slots: int) -> dict[str, int]:
    """Size of each logical axis that a mesh may cut."""
    return {
        "batch": slots,
        "embed": config.embed,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "mlp": config.mlp,
        "vocab": config.vocab,
    }
