"""Typed reads of a config.json in Hugging Face's names: what all families' readers share.

Published configs leave out what equals the default of their class, so each family states those
defaults. An entry that asks for what a family does not do here is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Activation, ModelConfig, Rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


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
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise self._wrong(name, value, "an integer")
        return int(value)

    def real(self, name: str, default: float | None = None) -> float:
        value = self.required(name) if default is None else self.hf.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, value, "a number")
        return float(value)

    def optional(self, name: str) -> float | None:
        """A number, or None where the entry is null or absent."""
        return self.real(name) if name in self else None

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
        return (window,) * self.integer("num_hidden_layers") if window else ()

    def switched_windows(self, sliding: Callable[[int], bool]) -> tuple[int, ...]:
        """Windows of a family that has them where `use_sliding_window` is set.

        Args:
          sliding: whether a layer has one, where the config has no layer_types.
        """
        window = self.integer("sliding_window", 0) if self.flag("use_sliding_window") else 0
        count = self.integer("num_hidden_layers")
        kinds = ("full_attention", "sliding_attention")
        chosen = [kinds[bool(window) and sliding(index)] for index in range(count)]
        self.hf.setdefault("layer_types", chosen)
        return self.windows(window, count)

    def rope(self, entries: Mapping[str, Any] | None = None, *, theta: float | None = None) -> Rope:
        """Rotary positions.

        Args:
          entries: of `rope_parameters` or `rope_scaling`; None = those of the config itself.
          theta: the base where none is stated; None = the config's `rope_theta`.
        """
        if entries is None:
            entries = self.hf.get("rope_parameters") or self.hf.get("rope_scaling") or {}
        kind = str(entries.get("rope_type", entries.get("type", "default")))
        kind = {"su": "longrope"}.get(kind, kind)
        if kind not in _ROPE_KINDS:
            raise ConfigError(
                f"config.json has rope_scaling {kind!r}: supported are {', '.join(_ROPE_KINDS)}"
            )
        own = Entries(entries, self.family)
        head_dim = self.head_dim()
        share = own.real("partial_rotary_factor", self.real("partial_rotary_factor", 1.0))
        size = int(head_dim * share)
        usual = None if "rope_theta" in self._null else 10_000.0
        base = own.optional("rope_theta") or theta or self.real("rope_theta", usual)
        turned = None if size == head_dim else size
        return _scaled(kind, own, self, Rope(base, turned), size)

    def head_dim(self) -> int:
        if "head_dim" in self:
            return self.integer("head_dim")
        return self.integer("hidden_size") // self.integer("num_attention_heads")

    def eos_ids(self) -> tuple[int, ...]:
        value = self.hf.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int for token in ids):
            raise self._wrong("eos_token_id", value, "an id or a list of ids")
        return tuple(ids)

    def config(self, **others: Any) -> ModelConfig:
        """The numbers that every decoder has; `others` are added, and win."""
        heads = self.integer("num_attention_heads")
        layers = self.integer("num_hidden_layers")
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
            "norm_eps": self.real("rms_norm_eps"),
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
        return Rope(theta, dim, "linear", factor=own.real("factor"))
    context = whole.integer("max_position_embeddings")
    if kind == "dynamic":
        return Rope(theta, dim, "dynamic", factor=own.real("factor"), original=context)
    name = "original_max_position_embeddings"
    original = whole.integer(name) if name in whole else own.integer(name, context)
    factor = own.optional("factor") or context / original
    fixed = own.optional("attention_factor")
    if kind == "llama3":
        low, high = own.real("low_freq_factor"), own.real("high_freq_factor")
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
    numbers = isinstance(values, list) and all(
        isinstance(value, (int, float)) and value > 0 for value in values
    )
    if not numbers or len(values) != count:
        raise ConfigError(
            f"config.json has {name} {str(values)[:40]!r}: it must be {count} numbers above 0"
        )
    return tuple(map(float, values))
