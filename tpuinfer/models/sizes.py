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


def find(name: str, said: str = "random-weights") -> dict[str, Any]:
    """The config.json of a name, as `registry.read_config` reads it.

    Args:
      name: one of sizes.toml.
      said: what the caller's user calls it, for the message.

    Raises:
      ConfigError: no such name; names the nearest and lists them all.
    """
    known = sizes()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{said} is {name!r}: one of {', '.join(sorted(known))}; nearest: {near}")
    return dict(known[name])
