"""Where everything lies and why, as rows that a terminal or a notebook renders."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tpuinfer.sharding.rules import Layout


@dataclass(frozen=True)
class Placement:
    """One array's place on the mesh.

    Attributes:
      count: how many arrays of this shape the row stands for (one per layer).
      spec: the PartitionSpec, as text. bytes_per_device: of all `count` arrays together.
      why: the decision behind each cut or refused cut.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    spec: str
    bytes_per_device: int
    why: str


def place(
    layout: Layout, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str | None, ...]]], size: int
) -> list[Placement]:
    """Rows for named (shape, axes); arrays that differ in their layer number alone share a row.

    Args:
      size: bytes per element.
    """
    rows: dict[str, Placement] = {}
    for name, (shape, axes) in arrays.items():
        key = re.sub(r"\blayers\.\d+\b", "layers.*", name)
        cut = math.prod(layout.shards(axis) for axis in axes if axis is not None)
        here = math.prod(shape) * size // cut
        if key in rows:
            old = rows[key]
            rows[key] = Placement(
                key, old.count + 1, shape, axes, old.spec, old.bytes_per_device + here, old.why
            )
        else:
            rows[key] = Placement(
                key, 1, shape, axes, _spec(layout, axes), here, _why(layout, axes)
            )
    return list(rows.values())


def table(rows: Sequence[Placement]) -> list[tuple[str, ...]]:
    """The rows as text, header first and the sum last."""
    lines = [("array", "count", "shape", "spec", "MB/device", "why")]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        size = f"{row.bytes_per_device / 1e6:.2f}"
        lines.append((row.name, str(row.count), shape, row.spec, size, row.why))
    total = sum(row.bytes_per_device for row in rows)
    return [*lines, ("total", "", "", "", f"{total / 1e6:.2f}", "")]


def render(lines: Iterable[tuple[str, ...]]) -> str:
    """Text columns, aligned."""
    lines = list(lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _spec(layout: Layout, axes: tuple[str | None, ...]) -> str:
    return "(" + ", ".join(str(part or "-") for part in layout.spec(axes)) + ")"


def _why(layout: Layout, axes: tuple[str | None, ...]) -> str:
    named = [axis for axis in axes if axis is not None and axis in layout.rules.axes]
    return "; ".join(f"{axis}: {layout.decisions[axis].why}" for axis in named) or "no rule cuts it"
