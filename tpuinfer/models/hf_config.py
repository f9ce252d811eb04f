"""Typed reads of a config.json in Hugging Face's names: what all families' readers share.

Published configs leave out what equals the default of their class, so each family states those
defaults. An entry that asks for what a family does not do here is refused by name.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Activation, ModelConfig, Rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

_MOST = 2**31
_MOST_LAYERS = 4096

_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


_ROPE_ENTRIES = frozenset(
    {
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "finetuned"),
        *("original_max_position_embeddings", "attention_factor", "truncate"),
        *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "short_factor", "long_factor"),
    }
)


class Entries:
    """A config.json, read for one family.

    Args:
      hf: the JSON object. family: ours, for messages.
      defaults: of Hugging Face's config class, where an entry may be left out. One that is null
        is not there, default or not.
    """

    def __init__(
        self, hf: Mapping[str, Any], family: str, defaults: Mapping[str, Any] | None = None
    ) -> None:
        merged = {**(defaults or {}), **hf}
        self.hf = {key: value for key, value in merged.items() if value is not None}
        self.family = family
        self._null = {key for key, value in hf.items() if value is None}

    def __contains__(self, name: str) -> bool:
        return self.hf.get(name) is not None

    def required(self, name: str) -> Any:
        if name in self:
            return self.hf[name]
        if name in self._null:
            raise ConfigError(f"config.json has an entry of the wrong type: {name} is null")
        raise ConfigError(f"config.json has no {name!r}, which {self.family} needs")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.required(name) if default is None else self.hf.get(name, default)
        if not _is_number(value) or value != int(value) or abs(value) >= _MOST:
            raise self._wrong(name, value, "an integer")
        return int(value)

    def real(self, name: str, default: float | None = None) -> float:
        value = self.required(name) if default is None else self.hf.get(name, default)
        if not _is_number(value):
            raise self._wrong(name, value, "a number")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.real(name, default)
        if value <= 0:
            raise self._wrong(name, value, "above 0")
        return value

    def optional(self, name: str) -> float | None:
        """A number above 0, or None where the entry is null or absent."""
        return self.positive(name) if name in self else None

    def layers(self) -> int:
        """How many layers there are."""
        value = self.integer("num_hidden_layers")
        if value > _MOST_LAYERS:
            raise self._wrong("num_hidden_layers", value, f"at most {_MOST_LAYERS}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; an empty one where the entry is null or absent."""
        value = self.hf.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.hf.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def activation(self, name: str = "hidden_act", default: str = "silu") -> Activation:
        value = str(self.hf.get(name, default))
        if value not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise ConfigError(f"config.json has {name} {value!r}: supported are {known}")
        return _ACTIVATIONS[value]

    def refuse(self, *names: str) -> None:
        """Refuse entries that are there and not false: what the family does not do here."""
        for name in names:
            if self.hf.get(name):
                raise ConfigError(
                    f"config.json has {name} {self.hf[name]!r}: not supported for {self.family}"
                )

    def windows(self, window: int, layers: int, period: int | None = None) -> tuple[int, ...]:
        """Of each layer, from `layer_types`; `window` is that of the sliding ones.

        Args:
          period: where the config has no layer_types, one layer in `period`, the last, looks at
            everything; None = it must have them.

        Raises:
          ConfigError: there is not one type for each layer, or one is not known, or the window of
            the sliding ones is.
        """
        full, sliding = "full_attention", "sliding_attention"
        if period is None or "layer_types" in self:
            types = self.required("layer_types")
        elif period < 1:
            raise ConfigError(f"config.json says one layer in {period} is {full}: at least 1")
        else:
            types = [sliding if (index + 1) % period else full for index in range(layers)]
        known = isinstance(types, list) and all(kind in (full, sliding) for kind in types)
        if not known or len(types) != layers:
            raise ConfigError(
                f"config.json has layer_types {str(types)[:80]!r}: {self.family} needs one of "
                f"{full}, {sliding} for each of {layers} layers"
            )
        if sliding not in types:
            return ()
        if window < 1:
            raise ConfigError(
                f"config.json has sliding_window {self.hf.get('sliding_window')!r} and layers of "
                f"{sliding}: they need at least 1"
            )
        return tuple(window if kind == sliding else 0 for kind in types)

    def one_window(self) -> tuple[int, ...]:
        """`sliding_window`, the same for every layer; null or 0 is none."""
        window = self.integer("sliding_window", 0)
        return (window,) * self.layers() if window else ()

    def switched_windows(self, sliding: Callable[[int], bool]) -> tuple[int, ...]:
        """Windows of a family that has them where `use_sliding_window` is set.

        Args:
          sliding: whether a layer has one, where the config has no layer_types.
        """
        window = self.integer("sliding_window", 0) if self.flag("use_sliding_window") else 0
        count = self.layers()
        kinds = ("full_attention", "sliding_attention")
        chosen = [kinds[bool(window) and sliding(index)] for index in range(count)]
        self.hf.setdefault("layer_types", chosen)
        return self.windows(window, count)

    def stated_rope(self) -> dict[str, Any]:
        """What the config says of rotary positions, under its newer or its older name."""
        return self.mapping("rope_parameters") or self.mapping("rope_scaling")

    def rope(
        self,
        entries: Mapping[str, Any] | None = None,
        *,
        theta: float | None = None,
        partial: bool = False,
    ) -> Rope:
        """Rotary positions.

        Args:
          entries: of one kind of layers; None = `stated_rope`.
          theta: the base where none is stated; None = the config's `rope_theta`.
          partial: the family may turn only a part of each head.
        """
        if entries is None:
            entries = self.stated_rope()
        kind = str(entries.get("rope_type", entries.get("type", "default")))
        kind = {"su": "longrope"}.get(kind, kind)
        if kind not in _ROPE_KINDS:
            raise ConfigError(
                f"config.json has rope_scaling {kind!r}: supported are {', '.join(_ROPE_KINDS)}"
            )
        own = Entries(entries, self.family)
        if unknown := sorted(own.hf.keys() - _ROPE_ENTRIES):
            raise ConfigError(
                f"config.json has {unknown[0]!r} within its rotary positions, which is not known "
                f"for {self.family} and may change the numbers"
            )
        size = self._turned(own, partial)
        usual = None if "rope_theta" in self._null else 10_000.0
        base = own.optional("rope_theta") or theta or self.positive("rope_theta", usual)
        return _scaled(kind, own, self, Rope(base, None if size == self.head_dim() else size), size)

    def _turned(self, own: "Entries", partial: bool) -> int:
        """How many dimensions of a head turn."""
        name = "partial_rotary_factor"
        share = own.positive(name, self.positive(name, 1.0))
        size = int(self.head_dim() * share)
        if share != 1 and not partial:
            raise ConfigError(f"config.json has {name} {share}: not supported for {self.family}")
        if share > 1 or size < 2 or size % 2:
            raise ConfigError(
                f"config.json has {name} {share}: {size} of a head's {self.head_dim()} dimensions "
                "turn with it, and it must be an even number of them, 2 or more"
            )
        return size

    def head_dim(self) -> int:
        if "head_dim" in self:
            return self.integer("head_dim")
        return self.integer("hidden_size") // max(self.integer("num_attention_heads"), 1)

    def eos_ids(self) -> tuple[int, ...]:
        value = self.hf.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and 0 <= token < _MOST for token in ids):
            raise self._wrong("eos_token_id", value, "an id or a list of ids")
        return tuple(ids)

    def config(self, **others: Any) -> ModelConfig:
        """The numbers that every decoder has; `others` are added, and win."""
        heads = self.integer("num_attention_heads")
        layers = self.layers()
        values: dict[str, Any] = {
            "family": self.family,
            "vocab": self.integer("vocab_size"),
            "embed": self.integer("hidden_size"),
            "mlp": self.integer("intermediate_size"),
            "layers": layers,
            "heads": heads,
            "kv_heads": self.integer("num_key_value_heads", heads),
            "head_dim": self.head_dim(),
            "context": self.integer("max_position_embeddings"),
            "norm_eps": self.positive("rms_norm_eps"),
            "tie_embeddings": self.flag("tie_word_embeddings"),
            "eos_ids": self.eos_ids(),
            "bos_id": self.integer("bos_token_id") if "bos_token_id" in self else None,
        }
        if "rope" not in others:
            values["rope"] = self.rope()
            values["context"] = max(values["context"], _reach(values["rope"]))
        if "activation" not in others:
            values["activation"] = self.activation()
        return ModelConfig(**{**values, **others})

    def _wrong(self, name: str, value: object, rule: str) -> ConfigError:
        return ConfigError(
            f"config.json has an entry of the wrong type: {name} is {str(value)[:60]!r}, "
            f"and must be {rule}"
        )


def _is_number(value: object) -> TypeGuard[int | float]:
    """Python's JSON reads Infinity and NaN, which are none here, and integers without end."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _reach(rope: Rope) -> int:
    """Tokens that positions stretch to, where a config states the context before stretching."""
    if rope.kind not in ("dynamic", "yarn") or rope.original is None:
        return 0
    return int(rope.factor * rope.original)


def _scaled(kind: str, own: Entries, whole: Entries, plain: Rope, size: int) -> Rope:
    """`plain` with the scaling of a kind; `size` dimensions of a head turn."""
    if kind == "default":
        return plain
    theta, dim = plain.theta, plain.dim
    if kind == "linear":
        return Rope(theta, dim, "linear", factor=own.positive("factor"))
    context = whole.integer("max_position_embeddings")
    if kind == "dynamic":
        return Rope(theta, dim, "dynamic", factor=own.positive("factor"), original=context)
    name = "original_max_position_embeddings"
    original = whole.integer(name) if name in whole else own.integer(name, context)
    if original < 2:
        raise ConfigError(f"config.json has {name} {original}: it must be at least 2")
    factor = own.optional("factor") or context / original
    fixed = own.optional("attention_factor")
    if kind == "llama3":
        low, high = own.positive("low_freq_factor"), own.positive("high_freq_factor")
        if high <= low:
            raise ConfigError(
                f"config.json has low_freq_factor {low} and high_freq_factor {high}: "
                "the second must be larger"
            )
        return Rope(theta, dim, "llama3", factor, original, low=low, high=high)
    if kind == "yarn":
        return Rope(
            theta,
            dim,
            "yarn",
            factor,
            original,
            low=own.optional("beta_slow") or 1.0,
            high=own.optional("beta_fast") or 32.0,
            truncate=own.flag("truncate", True),
            attention_factor=fixed,
            mscale=own.optional("mscale"),
            mscale_all_dim=own.optional("mscale_all_dim"),
        )
    short, long = (_divisors(own, f"{which}_factor", size // 2) for which in ("short", "long"))
    return Rope(
        theta, dim, "longrope", factor, original, attention_factor=fixed, short=short, long=long
    )


def _divisors(own: Entries, name: str, count: int) -> tuple[float, ...]:
    values = own.required(name)
    numbers = isinstance(values, list) and all(_is_number(value) and value > 0 for value in values)
    if not numbers or len(values) != count:
        raise ConfigError(
            f"config.json has {name} {str(values)[:40]!r}: it must be {count} numbers above 0"
        )
    return tuple(map(float, values))
