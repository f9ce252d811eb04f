"""What a family of models states about itself: the record that the registry collects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flax import nnx

from tpuinfer.model_config import AnyConfig
from tpuinfer.models.names import Names


@dataclass(frozen=True)
class Wrapped:
    """Checkpoints that hold a family's model beside others, such as a vision tower.

    Attributes:
      model_type: of their config.json; one of the family's `model_types`.
      config: their config.json -> that of the family's model alone.
      renamed: (pattern, replacement): names of the family's tensors -> those without the rest.
      unread: pattern of the names of all other tensors.
      note: what is not read, for the log.
    """

    model_type: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    renamed: tuple[tuple[str, str], ...]
    unread: str
    note: str


@dataclass(frozen=True)
class Family:
    """A family: how its config is read, what it is built of, and how checkpoints name its parts.

    Attributes:
      name: ours, as `ModelConfig.family` has it and as the module is called.
      title: for people.
      model_types: values of config.json's model_type that `read_config` reads.
      examples: well-known models, by their names on Hugging Face's hub.
      read_config: config.json, in Hugging Face's names -> numbers; raises ConfigError for what the
        family does not do here, by name.
      blueprint: numbers -> the model, abstract.
      hf_names: where each parameter lies in the safetensors that Hugging Face publishes.
      architectures: general.architecture of GGUF files; empty where ggml has none.
      gguf_names: where each parameter lies in a GGUF file of such an architecture.
      kind: "decoder" makes text; "encoder" makes one vector of each text.
      ignored: patterns (regular expressions) of published tensors that the model does not use.
      wrapped: how it lies in checkpoints of more than it; None = it does not.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    examples: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any]], AnyConfig]
    blueprint: Callable[[Any], nnx.Module]
    hf_names: Callable[[Any], Names]
    architectures: tuple[str, ...] = ()
    gguf_names: Callable[[Any, str], Names] | None = None
    kind: Literal["decoder", "encoder"] = "decoder"
    ignored: tuple[str, ...] = ()
    wrapped: Wrapped | None = None
