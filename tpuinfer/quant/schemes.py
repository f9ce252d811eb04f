"""Which weight is kept how: data, from a word on a command line or a table in a file.

    int8                                    every matmul of the layers, embedding and head
    int4:64                                 the same; embedding and head in int8
    w8a8,layers.*.mlp.down_proj=int8        the later pattern wins
    int4,embedding=none,layers.0=none

A scheme is a kind, and how many neighbouring inputs share a scale:

    none     the dtype of the model
    int8     8-bit codes, a scale a row
    w8a8     the same, and activations in 8 bits with a scale a row, made when they come
    int4     4-bit codes, in groups of 64 unless another size is named; int4z has zeros as well
    fp8      float8_e4m3fn (arXiv:2209.05433), a scale a row
"""

import difflib
import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tpuinfer.config import read_toml
from tpuinfer.errors import ConfigError
from tpuinfer.quant.qarray import Kind

NONE = "none"
WORDS = (NONE, "int8", "w8a8", "int4", "int4z", "fp8")
AUTO, PUBLISHED = "auto", "published"

_PACKED = ("int4", "int4z")
_GROUP = 64
"""As compiled for TPUs 4-bit codes are read fastest in groups of 64, and they round less."""

_LEAST_GROUP = 8

_NAMES = {
    "embedding": "embed_tokens",
    "head": "lm_head",
    "attention": "layers.*.self_attn",
    "mlp": "layers.*.mlp",
    "experts": "layers.*.mlp.experts",
    "layers": "layers",
}
"""Words for groups of weights."""


class Weight(Protocol):
    """What is asked of a parameter: its shape, and how many last dimensions a dot contracts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def contracted(self) -> int: ...


@dataclass(frozen=True)
class Scheme:
    """How one weight is kept.

    Attributes:
      word: one of WORDS. group: inputs that share a scale; None = all of a row.
    """

    word: str
    group: int | None = None

    def __post_init__(self) -> None:
        if self.word not in WORDS:
            raise ConfigError(_no_scheme(self.word))
        if self.group is None:
            return
        if self.word in (NONE, "w8a8"):
            raise ConfigError(f"scheme {self}: {self.word} takes no groups; nearest: {self.word}")
        if self.group < _LEAST_GROUP:
            raise ConfigError(
                f"scheme {self}: a group has at least {_LEAST_GROUP} inputs; nearest: "
                f"{self.word}:{_LEAST_GROUP}"
            )
        if self.is_packed and self.group % 2:
            raise ConfigError(
                f"scheme {self}: two 4-bit codes share a byte, so a group is even; nearest: "
                f"{self.word}:{self.group - 1}"
            )

    @classmethod
    def parse(cls, text: str) -> "Scheme":
        """From "int8" or "int4:64".

        Raises:
          ConfigError: the text is no scheme; names the nearest.
        """
        match = re.fullmatch(r"\s*([a-z0-9]+)(?::(\d+))?\s*", text)
        if match is None:
            raise ConfigError(_no_scheme(text))
        usual = _GROUP if match[1] in _PACKED else None
        return cls(match[1], int(match[2]) if match[2] else usual)

    def __str__(self) -> str:
        return self.word if self.group is None else f"{self.word}:{self.group}"

    @property
    def kind(self) -> Kind:
        """How it multiplies; not of "none"."""
        kinds: dict[str, Kind] = {"int8": "int8", "w8a8": "w8a8", "fp8": "fp8"}
        return kinds.get(self.word, "int4")

    @property
    def has_zero(self) -> bool:
        return self.word == "int4z"

    @property
    def is_packed(self) -> bool:
        """Whether files keep two codes in a byte."""
        return self.word in _PACKED

    def fitted(self, width: int) -> "Scheme":
        """The scheme for rows of so many inputs: groups are halved until they divide a row.

        >>> str(Scheme.parse("int4").fitted(576))
        'int4:64'

        Raises:
          ConfigError: no group of at least 8 inputs does.
        """
        if self.group is None:
            return self
        size = self.group
        while size >= _LEAST_GROUP and (width % size or (self.is_packed and size % 2)):
            size //= 2
        if size < _LEAST_GROUP:
            raise ConfigError(
                f"scheme {self}: rows of {width} inputs cannot be cut into groups of {self.group}, "
                f"nor of its halves down to {_LEAST_GROUP}; nearest: int8"
            )
        return Scheme(self.word, size)


@dataclass(frozen=True)
class Schemes:
    """A table of patterns; the last one that fits a weight's name decides.

    Attributes:
      table: (pattern, scheme): a pattern is one of the words for a group of weights, or a
        parameter's name or the beginning of one, with * for any text.
    """

    table: tuple[tuple[str, Scheme], ...]

    @classmethod
    def parse(cls, text: str) -> "Schemes":
        """From a scheme and exceptions, as above, or the path of a TOML file with [weights].

        Raises:
          ConfigError: neither.
        """
        if text.endswith(".toml"):
            return _from_file(text)
        first, *rest = text.split(",")
        table = [*_everywhere(Scheme.parse(first))]
        for part in rest:
            pattern, equals, scheme = part.partition("=")
            if not equals:
                raise ConfigError(f"weights {text!r}: {part!r} is no PATTERN=SCHEME")
            table.append((pattern.strip(), Scheme.parse(scheme)))
        return cls(tuple(table))

    def resolve(self, weights: Mapping[str, Weight]) -> dict[str, Scheme]:
        """The scheme of each weight that is to be quantised, by name.

        Vectors, and what a model keeps exact (routers), never are.

        Raises:
          ConfigError: a pattern fits no weight, or groups do not fit a row of a weight.
        """
        found: dict[str, Scheme] = {}
        able = {name: weight for name, weight in weights.items() if weight.contracted}
        for index, (pattern, scheme) in enumerate(self.table):
            names = [name for name in able if _fits(pattern, name)]
            if not names and index >= len(_EVERYWHERE):
                raise ConfigError(_nothing_fits(pattern, list(able)))
            found |= dict.fromkeys(names, scheme)
        return {
            name: _fitted(name, scheme, able[name])
            for name, scheme in found.items()
            if scheme.word != NONE
        }


def _fitted(name: str, scheme: Scheme, weight: Weight) -> Scheme:
    try:
        return scheme.fitted(math.prod(weight.shape[-weight.contracted :]))
    except ConfigError as error:
        raise ConfigError(f"weights: {name}: {error}; write {name}=int8 after it") from None


def _no_scheme(text: str) -> str:
    near = difflib.get_close_matches(text.strip().lower(), WORDS, n=1, cutoff=0.0)[0]
    return f"scheme {text!r}: one of {', '.join(WORDS)}, or such as int4:64; nearest: {near}"


_EVERYWHERE = ("layers", "embedding", "head")


def _everywhere(scheme: Scheme) -> list[tuple[str, Scheme]]:
    """A scheme for the layers; embedding and head are kept in at least 8 bits, exactly multiplied.

    They are a small part of a model, and what they round nothing after them mends.
    """
    careful = scheme.is_packed or scheme.word == "w8a8"
    edges = Scheme("int8") if careful else scheme
    return list(zip(_EVERYWHERE, (scheme, edges, edges), strict=True))


def _from_file(path: str) -> Schemes:
    data = read_toml(Path(path).expanduser())
    entries = data.get("weights")
    if set(data) != {"weights"} or not isinstance(entries, dict):
        raise ConfigError(f'{path}: write one table, [weights], of "pattern" = "scheme"')
    table = _everywhere(Scheme(NONE))
    for pattern, scheme in entries.items():
        if not isinstance(scheme, str):
            raise ConfigError(f"{path}: {pattern} is {scheme!r}: it must be a string")
        table.append((pattern, Scheme.parse(scheme)))
    return Schemes(tuple(table))


def _fits(pattern: str, name: str) -> bool:
    known = _NAMES.get(pattern, pattern)
    return fnmatch.fnmatchcase(name, known) or fnmatch.fnmatchcase(name, f"{known}.*")


def _nothing_fits(pattern: str, names: list[str]) -> str:
    if pattern == "head":
        return "head=: this model's head is its embedding; nearest: embedding="
    known = [*(word for word in _NAMES if any(_fits(word, name) for name in names)), *names]
    near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]
    return f"weights: no weight's name is like {pattern!r}; nearest: {near}"
