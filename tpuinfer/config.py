"""Small frozen dataclasses, each consumed by one room; TOML in, clear errors out. Knows no jax."""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tpuinfer.errors import ConfigError

Dtype = Literal["auto", "bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

RingDtype = Literal["auto", "bfloat16", "float32", "int8", "fp8"]
RING_DTYPES: tuple[RingDtype, ...] = get_args(RingDtype)

AttentionChoice = Literal["auto", "reference", "pallas"]
ATTENTION_CHOICES: tuple[AttentionChoice, ...] = get_args(AttentionChoice)


@dataclass(frozen=True)
class SlotClass:
    """Slots whose rings are of one length.

    Attributes:
      slots: how many, over all data shards.
      context: tokens a slot holds, prompt plus generated; None = by the model and the platform.
    """

    slots: int = 8
    context: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError(f"slots is {self.slots}: at least 1 is needed")
        if self.context is not None and self.context < 2:
            raise ConfigError(f"context is {self.context}: at least 2 tokens are needed")


Fit = Literal["nothing", "slots", "context", "both"]
"""What the memory of the devices decides."""

ContextPolicy = Literal["stop", "roll"]
CONTEXT_POLICIES: tuple[ContextPolicy, ...] = get_args(ContextPolicy)


@dataclass(frozen=True)
class EngineConfig:
    """How many requests run at once, how long each may be, and what happens when one is longer.

    Attributes:
      classes: slots by the length of their rings, shortest first.
      context_policy: at the end of its context a request ends ("stop"), or forgets its oldest
        tokens and goes on ("roll").
      sinks: how many first tokens a rolling request never forgets (attention sinks,
        arXiv:2309.17453).
      prefill_wait_ms: how long a prompt may wait for others to share its prefill, milliseconds.
      strict_compile: a compile after warm-up is an error instead of a warning.
      ring: what rings keep keys and values as: auto is by the platform; int8 and fp8 are codes with
        a scale for each row of a head.
      attention: what reads the rings: auto is by the platform; reference is XLA's, pallas the
        kernels for TPUs (interpreted on a CPU, slowly).
      fit: what `engine.fit` is to choose; the number that the only class has for it counts nothing.
    """

    classes: tuple[SlotClass, ...] = (SlotClass(),)
    context_policy: ContextPolicy = "stop"
    sinks: int = 4
    prefill_wait_ms: float = 0.0
    strict_compile: bool = False
    ring: RingDtype = "auto"
    attention: AttentionChoice = "auto"
    fit: Fit = "nothing"

    def __post_init__(self) -> None:
        if self.fit != "nothing" and len(self.classes) > 1:
            raise ConfigError("slots or context is auto: that goes with one class of slots")
        if self.ring not in RING_DTYPES:
            near = difflib.get_close_matches(str(self.ring), RING_DTYPES, 1, 0.0)[0]
            raise ConfigError(
                f"ring is {self.ring!r}: one of {', '.join(RING_DTYPES)}; nearest: {near}"
            )
        if self.attention not in ATTENTION_CHOICES:
            near = difflib.get_close_matches(str(self.attention), ATTENTION_CHOICES, 1, 0.0)[0]
            raise ConfigError(
                f"attention is {self.attention!r}: one of {', '.join(ATTENTION_CHOICES)}; "
                f"nearest: {near}"
            )
        if not self.classes:
            raise ConfigError("slots is empty: at least 1 is needed")
        lengths = [one.context for one in self.classes]
        if len(lengths) > 1 and None in lengths:
            raise ConfigError("several classes of slots: give each a length, such as 8x2048,2x8192")
        if len(set(lengths)) < len(lengths):
            raise ConfigError(
                f"two classes of slots have the same length, {max(lengths, key=lengths.count)}"
            )
        object.__setattr__(
            self, "classes", tuple(sorted(self.classes, key=lambda one: one.context or 0))
        )
        if self.context_policy not in CONTEXT_POLICIES:
            near = difflib.get_close_matches(str(self.context_policy), CONTEXT_POLICIES, 1, 0.0)[0]
            raise ConfigError(
                f"context-policy is {self.context_policy!r}: one of {', '.join(CONTEXT_POLICIES)}; "
                f"nearest: {near}"
            )
        if self.sinks < 0:
            raise ConfigError(f"sinks is {self.sinks}: at least 0")
        if not 0 <= self.prefill_wait_ms <= 10_000:
            nearest = 0 if not self.prefill_wait_ms > 0 else 10_000
            raise ConfigError(
                f"prefill-wait-ms is {self.prefill_wait_ms}: it must be in [0, 10000]; "
                f"nearest: {nearest}"
            )

    @property
    def slots(self) -> int:
        """Slots of all classes."""
        return sum(one.slots for one in self.classes)

    @classmethod
    def parse(
        cls, slots: int | str, context: int | str | None = None, **others: Any
    ) -> "EngineConfig":
        """From `--slots` (N, NxLENGTH, several of the latter with commas, or auto) and `--context`.

        Raises:
          ConfigError: the text is none of these, or names another length than `context`.
        """
        context, long = _context(context)
        if str(slots).strip() == "auto":
            fit: Fit = "both" if long else "slots"
            return cls((SlotClass(1, context),), fit=fit, **others)
        classes = []
        parts = str(slots).split(",")
        for part in parts:
            match = re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", part)
            if match is None:
                raise ConfigError(
                    f"slots is {slots!r}: write N, NxLENGTH or auto, such as 8, 8x2048 or "
                    "48x2048,8x16384"
                )
            if long and match[2]:
                raise ConfigError(f"slots is {slots!r} but context is auto: give one length")
            length = int(match[2]) if match[2] else context
            if context is not None and length != context:
                raise ConfigError(f"slots is {slots!r} but context is {context}: give one length")
            classes.append(SlotClass(int(match[1]), length))
        return cls(classes=tuple(classes), fit="context" if long else "nothing", **others)


def _context(context: int | str | None) -> tuple[int | None, bool]:
    """`--context` as a number, and whether it is auto."""
    if context is None or isinstance(context, int):
        return context, False
    if context.strip() == "auto":
        return None, True
    try:
        return int(context), False
    except ValueError:
        raise ConfigError(f"context is {context!r}: a number of tokens, or auto") from None


def check_dtype(name: str) -> Dtype:
    """`name` as one of DTYPES, or ConfigError with the nearest."""
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    near = difflib.get_close_matches(str(name), DTYPES, n=1, cutoff=0.0)[0]
    raise ConfigError(f"dtype is {name!r}: one of {', '.join(DTYPES)}; nearest: {near}")


@dataclass(frozen=True)
class Settings:
    """What the front doors share, under the names of the flags; a TOML file gives any of them.

    Attributes:
      topology: the slice that all this was chosen for, such as v5e:2x4; no shared flag, as devices
        are what they are.
    """

    model: str = "smollm2-135m-instruct"
    mesh: str = "1"
    topology: str | None = None
    rules: str | None = None
    dtype: str = "auto"
    slots: int | str = 8
    context: int | str | None = None
    context_policy: str = "stop"
    sinks: int = 4
    prefill_wait_ms: float = 0.0
    strict_compile: bool = False
    weights: str = "auto"
    ring: str = "auto"
    attention: str = "auto"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def engine(self) -> EngineConfig:
        """What they say of slots and contexts, read and checked.

        Raises:
          ConfigError: a value cannot be used.
        """
        return EngineConfig.parse(
            self.slots,
            self.context,
            context_policy=self.context_policy,
            sinks=self.sinks,
            prefill_wait_ms=self.prefill_wait_ms,
            strict_compile=self.strict_compile,
            ring=self.ring,
            attention=self.attention,
        )


_TOML_TABLES: dict[str, dict[str, tuple[type, ...]]] = {
    "model": {"model": (str,), "dtype": (str,), "weights": (str,)},
    "mesh": {"mesh": (str, int), "topology": (str,)},
    "sharding": {"rules": (str,)},
    "engine": {
        "slots": (int, str),
        "context": (int, str),
        "context_policy": (str,),
        "sinks": (int,),
        "prefill_wait_ms": (int, float),
        "strict_compile": (bool,),
        "ring": (str,),
        "attention": (str,),
    },
}
"""Table -> key -> the types that its value may have."""

_TOML_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def load_settings(path: str | Path, overrides: Mapping[str, Any]) -> Settings:
    """Settings from a TOML file with tables [model] [mesh] [sharding] [engine].

    `overrides` (flags given on the command line) win over the file.

    Raises:
      ConfigError: the file is missing, is not TOML, or has a table or key that is not known, or a
        value of another type.
    """
    values: dict[str, Any] = {}
    for table, entries in read_toml(path).items():
        known = _TOML_TABLES.get(table)
        if known is None or not isinstance(entries, dict):
            raise ConfigError(f"{path}: [{table}] is not known; tables: {', '.join(_TOML_TABLES)}")
        for key, value in entries.items():
            if key not in known:
                raise ConfigError(
                    f"{path}: [{table}] has no {key!r}; it takes {', '.join(sorted(known))}"
                )
            if type(value) not in known[key]:
                names = " or ".join(_TOML_NAMES[kind] for kind in known[key])
                raise ConfigError(f"{path}: {key} is {value!r}: it must be {names}")
            values[key] = value
    return dataclasses.replace(Settings(**values), **overrides)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file, or raise ConfigError naming the file and what is wrong with it."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
