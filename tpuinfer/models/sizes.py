"""Models known by their sizes alone. The data is sizes.toml; this reads it."""

import difflib
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tpuinfer.errors import ConfigError


@functools.cache
def sizes() -> Mapping[str, dict[str, Any]]:
    """Every model of sizes.toml by name: a config.json, without what is not about sizes."""
    text = resources.files(__package__).joinpath("sizes.toml").read_text("utf-8")
    return tomllib.loads(text)


def by_path(path: str) -> str | None:
    """The name in sizes.toml of what the hub calls so, in upper or lower case, org left out or not.

    >>> by_path("meta-llama/Llama-3.1-8B-Instruct"), by_path("smollm2-135m-instruct")
    ('llama-3.1-8b', 'smollm2-135m')
    """
    return _paths().get(path.lower())


def find(name: str, said: str = "random-weights") -> dict[str, Any]:
    """The config.json of a name, as `registry.read_config` reads it.

    Args:
      name: one of sizes.toml, or what the hub calls it; in upper or lower case.
      said: what the caller's user calls it, for the message.

    Raises:
      ConfigError: no such name; names the nearest, which may be the hub's, and lists ours.
    """
    known = sizes()
    ours = name.lower() if name.lower() in known else by_path(name)
    if ours is None:
        spelt = {one["_name_or_path"].lower(): one["_name_or_path"] for one in known.values()}
        names = dict.fromkeys([*known, *_paths()])
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{said} is {name!r}: one of {', '.join(sorted(known))}; "
            f"nearest: {spelt.get(near, near)}"
        )
    return dict(known[ours])


@functools.cache
def _paths() -> Mapping[str, str]:
    """Our names by the hub's, in lower case, with the org and without."""
    found: dict[str, str] = {}
    for name, one in sizes().items():
        path = one["_name_or_path"].lower()
        found |= {path: name, path.rpartition("/")[2]: name}
    return found
