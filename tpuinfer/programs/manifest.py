"""The manifest: every compiled program, what it is fixed to and what it costs."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tpuinfer.sharding import report

CacheUse = Literal["hit", "miss", "off"]

_SHAPES_WIDTH = 56


@dataclass(frozen=True)
class Entry:
    """One program of the manifest. Bytes and FLOPs are of one device; 0 bytes if XLA is silent.

    Attributes:
      shapes: what the host sends along, such as "tokens i32[4,64], last bool[4]".
      lower_seconds: tracing and lowering. compile_seconds: compiling, or reading the cache, while
        other programs may have been compiling too.
      argument_bytes: weights, state and what the host sends.
      alias_bytes: the part of them that is updated in place.
      temp_bytes: scratch memory while it runs.
      output_bytes: what it returns, the part that is updated in place included.
      flops: as XLA counts them, the body of a loop once; None if it does not say.
      cache: whether it was found in the compilation cache; "off" = there is none.
    """

    name: str
    shapes: str
    lower_seconds: float
    compile_seconds: float
    argument_bytes: int
    alias_bytes: int
    temp_bytes: int
    output_bytes: int
    flops: float | None
    cache: CacheUse


def as_dicts(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The entries as JSON takes them."""
    return [dataclasses.asdict(entry) for entry in entries]


def table(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The entries as text, header first and the sum of the seconds last."""
    sizes = ("arguments", "in place", "scratch", "output")
    header = ("program", "lower s", "compile s", "cache")
    lines = [(*header, *(f"{size} MB" for size in sizes), "GFLOP", "shapes")]
    for entry in entries:
        parts = (entry.argument_bytes, entry.alias_bytes, entry.temp_bytes, entry.output_bytes)
        lines.append(
            (
                entry.name,
                f"{entry.lower_seconds:.2f}",
                f"{entry.compile_seconds:.2f}",
                entry.cache,
                *(f"{part / 1e6:.2f}" for part in parts),
                "-" if entry.flops is None else f"{entry.flops / 1e9:.3f}",
                _cut(entry.shapes),
            )
        )
    lower = sum(entry.lower_seconds for entry in entries)
    compiling = sum(entry.compile_seconds for entry in entries)
    uses = Counter(entry.cache for entry in entries)
    cache = ", ".join(f"{count} {use}" for use, count in sorted(uses.items()))
    return [*lines, ("total", f"{lower:.2f}", f"{compiling:.2f}", cache, *[""] * 6)]


def render(entries: Sequence[Entry]) -> str:
    """The table as aligned text."""
    return report.render(table(entries))


def _cut(text: str) -> str:
    return text if len(text) <= _SHAPES_WIDTH else text[: _SHAPES_WIDTH - 3] + "..."
