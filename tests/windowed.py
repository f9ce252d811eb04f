"""A tiny model with all that a program may have: windows, ring classes, several rows, few rows.

The sizes are such that no other array of a program is as large as one of its rings: those have a
factor of 3 or 5, the others of 7 or none.
"""

import dataclasses

from tpuinfer.testing.tiny import TINY, Tiny, tiny

WINDOWED = dataclasses.replace(TINY, windows=(40, 0))
"""The window is longer than the short rings, and shorter than a prefill chunk."""

SINKS = 4


def stops() -> Tiny:
    """6 slots of 32 tokens and 8 of 80; a request ends at its capacity."""
    return tiny(WINDOWED, slots="6x32,8x80", buckets=(64,), rows=(1, 4), narrow=(4,), block=16)


def rolls(mesh: str = "1") -> Tiny:
    """6 slots of 32 tokens and 8 of 80, with sinks; a request goes on for ever."""
    return tiny(
        WINDOWED,
        mesh,
        slots="6x32,8x80",
        buckets=(64,),
        rows=(1, 4),
        narrow=(4,) if mesh == "1" else (2,),
        sinks=SINKS,
        block=16,
    )
