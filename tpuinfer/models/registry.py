"""Which families there are, and which one a config.json asks for."""

import difflib
import functools
import importlib
from collections.abc import Mapping
from typing import Any, cast, overload

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import AnyConfig, EncoderConfig, ModelConfig
from tpuinfer.models.bert import Bert
from tpuinfer.models.decoder import Decoder
from tpuinfer.models.family import Family

_MODULES = (
    "bert",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)
"""One a family; each has a FAMILY."""


@functools.cache
def families() -> Mapping[str, Family]:
    """Every family by name."""
    found = [importlib.import_module(f"tpuinfer.models.{name}").FAMILY for name in _MODULES]
    return {family.name: family for family in found}


def family_of(config: AnyConfig) -> Family:
    """The family of a model's numbers."""
    return families()[config.family]


def for_model_type(model_type: object) -> Family:
    """The family that reads a config.json of this model_type.

    Raises:
      ConfigError: none does; names the nearest, and all.
    """
    known = {name: family for family in families().values() for name in family.model_types}
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    near = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"config.json has model_type {model_type!r}, which is not supported; nearest: {near}; "
        f"supported are {', '.join(sorted(known))}"
    )


def read_config(hf: Mapping[str, Any]) -> AnyConfig:
    """Read a checkpoint's config.json.

    Raises:
      ConfigError: the model type is not one of ours, or the config is not complete, or asks for
        what the family does not do here.
    """
    return for_model_type(hf.get("model_type")).read_config(hf)


@overload
def build(config: ModelConfig) -> Decoder: ...
@overload
def build(config: EncoderConfig) -> Bert: ...
def build(config: AnyConfig) -> Decoder | Bert:
    """The blueprint of a model: shapes and axes, no arrays. Not to be changed: it is shared."""
    return _built(config)


@functools.lru_cache(maxsize=8)
def _built(config: AnyConfig) -> Decoder | Bert:
    return cast(Decoder | Bert, family_of(config).blueprint(config))


def table() -> list[tuple[str, ...]]:
    """What can be read, header first, then a row for each family."""
    header = ("family", "safetensors (model_type)", "GGUF (architecture)", "such as")
    rows = [
        (
            family.title,
            ", ".join(family.model_types),
            ", ".join(family.architectures) or "-",
            ", ".join(family.examples),
        )
        for family in families().values()
    ]
    return [header, *rows]


def axis_sizes(config: AnyConfig, slots: int) -> dict[str, int]:
    """Size of each logical axis that a mesh may cut; 0 = whatever divides."""
    sizes = {
        "batch": slots,
        "embed": config.embed,
        "heads": config.heads,
        "kv_heads": config.heads if isinstance(config, EncoderConfig) else config.kv_heads,
        "head_dim": config.head_dim,
        "mlp": config.mlp,
        "vocab": config.vocab,
    }
    if isinstance(config, ModelConfig):
        sizes |= {"residual": config.embed, "length": 0}
    if isinstance(config, ModelConfig) and config.experts is not None:
        sizes |= {"expert": config.experts.count, "expert_mlp": config.experts.mlp}
        sizes["expert_embed"] = config.embed
    return sizes
