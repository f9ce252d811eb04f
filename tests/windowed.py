"""A tiny model with all that a program may have: windows, ring classes, several rows, few rows.

The sizes are such that no other array of a program is as large as one of its rings.
"""

import dataclasses

from tpuinfer.testing.tiny import TINY, Tiny, tiny

WINDOWED = dataclasses.replace(TINY, windows=(20, 0))
"""The window is longer than the short rings of `rolls`, and shorter than a prefill chunk."""

_SHAPES = {"buckets": (32,), "rows": (1, 4)}


def stops(mesh: str = "1") -> Tiny:
    """6 slots of 32 tokens and 6 of 64; a request ends at its capacity."""
    return tiny(WINDOWED, mesh, slots="6x32,6x64", narrow=narrow(mesh), **_SHAPES)


def rolls(mesh: str = "1") -> Tiny:
    """6 slots of 16 tokens and 6 of 40, 4 sinks; a request goes on for ever."""
    return tiny(WINDOWED, mesh, slots="6x16,6x40", narrow=narrow(mesh), sinks=4, **_SHAPES)


def narrow(mesh: str) -> tuple[int, ...]:
    """Rows per data shard of the narrow decode."""
    return (4,) if mesh == "1" else (2,)
