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


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a decoder, in the letters used everywhere.

    Attributes:
      family: which blueprint builds it ("llama").
      vocab: V. embed: D. mlp: F. layers: number of blocks. heads: N. kv_heads: K. head_dim: H.
      context: the longest sequence the model was trained for, tokens.
      rope_theta: base of the rotary frequencies (arXiv:2104.09864).
      norm_eps: epsilon of RMSNorm (arXiv:1910.07467).
      tie_embeddings: the head is the embedding.
      eos_ids: tokens that end a text. bos_id: the token that opens one, if any.
    """

    family: str
    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab", "embed", "mlp", "layers", "heads", "kv_heads", "head_dim", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model {name} is {getattr(self, name)}: it must be at least 1")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model has {self.heads} query heads and {self.kv_heads} KV heads: "
                "the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model head_dim is {self.head_dim}: rotary positions need it even")


@dataclass(frozen=True)
class EngineConfig:
    """How many requests run at once and how long each may be.

    Attributes:
      slots: rows of the ring cache, over all data shards.
      context: ring length of a global layer: prompt plus generated tokens; None = by the model.
    """

    slots: int = 8
    context: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError(f"slots is {self.slots}: at least 1 is needed")
        if self.context is not None and self.context < 2:
            raise ConfigError(f"context is {self.context}: at least 2 tokens are needed")

    @classmethod
    def parse(cls, slots: int | str, context: int | None = None) -> "EngineConfig":
        """From `--slots` (N or NxLENGTH) and `--context`.

        Raises:
          ConfigError: the text is neither form, or names another length than `context`.
        """
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(slots).strip())
        if match is None:
            raise ConfigError(f"slots is {slots!r}: write N or NxLENGTH, such as 8 or 8x2048")
        length = int(match[2]) if match[2] else context
        if context is not None and length != context:
            raise ConfigError(f"slots is {slots!r} but context is {context}: give one length")
        return cls(slots=int(match[1]), context=length)


def check_dtype(name: str) -> Dtype:
    """`name` as one of DTYPES, or ConfigError with the nearest."""
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    near = difflib.get_close_matches(str(name), DTYPES, n=1, cutoff=0.0)[0]
    raise ConfigError(f"dtype is {name!r}: one of {', '.join(DTYPES)}; nearest: {near}")


@dataclass(frozen=True)
class Settings:
    """What the front doors share, under the names of the flags; a TOML file gives any of them."""

    model: str = "smollm2-135m-instruct"
    mesh: str = "1"
    rules: str | None = None
    dtype: str = "auto"
    slots: int | str = 8
    context: int | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)


_TOML_TABLES: dict[str, dict[str, tuple[type, ...]]] = {
    "model": {"model": (str,), "dtype": (str,)},
    "mesh": {"mesh": (str, int)},
    "sharding": {"rules": (str,)},
    "engine": {"slots": (int, str), "context": (int,)},
}
"""Table -> key -> the types that its value may have."""

_TOML_NAMES = {str: "a string", int: "an integer"}


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
