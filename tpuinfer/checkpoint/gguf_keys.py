"""Typed reads of an architecture's metadata in a GGUF file, which collect what is wrong."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
"""Values of keys that say nothing, or what every architecture here does anyway: softmax over the
experts (1), the weights of the chosen ones normalised and not scaled."""

_IRRELEVANT = ("attention.layer_norm_epsilon", "rope.scaling.alpha", "tensor_data_layout")
"""Of another kind of norm, of HunYuan's rope, and a note of where the weights came from."""


class Keys:
    """The keys `<architecture>.*` of a file.

    What is missing or wrong is noted in `problems`, and a value that can be computed with stands in
    for it, so that a user sees one full answer.
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.architecture = architecture
        self.problems: list[str] = []
        prefix = f"{architecture}."
        self._values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """A value as it stands there."""
        self._read.add(name)
        return self._values.get(name, default)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(name, default)
        if type(value) is int and least <= value < 2**31:
            return value
        self._note(name, value, f"an integer of at least {least}")
        return max(1, least)

    def real(self, name: str, default: float | None = None) -> float:
        """A number above 0; one that is stored as float32 comes back as its shortest decimal."""
        value = self.get(name, default)
        if isinstance(value, float) and math.isfinite(value) and value > 0:
            return float(str(np.float32(value)))
        self._note(name, value, "a number above 0")
        return 1.0

    def factor(self, name: str, default: float = 1.0) -> float:
        """A number of which 0 means that it is not there, as llama.cpp has it."""
        return default if self.get(name, 0.0) == 0.0 else self.real(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if isinstance(value, bool):
            return value
        self._note(name, value, "true or false")
        return default

    def text(self, name: str, default: str) -> str:
        value = self.get(name, default)
        if isinstance(value, str):
            return value
        self._note(name, value, "a text")
        return default

    def refuse(self, name: str, what: str) -> None:
        """Note a value that cannot be honoured."""
        self.problems.append(f"{self._full(name)} = {str(self.get(name))[:60]}: {what}")

    def check_unread(self) -> None:
        """Note every key that nobody has read, unless its value says nothing."""
        for name, value in self._values.items():
            expected = name in self._read or name in _IRRELEVANT
            if not expected and value not in _NEUTRAL.get(name, ()):
                self.refuse(name, "not known here, and may change the numbers")

    def _full(self, name: str) -> str:
        return f"metadata key {self.architecture}.{name}"

    def _note(self, name: str, value: object, rule: str) -> None:
        found = "missing" if value is None else str(value)[:60]
        self.problems.append(f"{self._full(name)} is {found}; it must be {rule}")
