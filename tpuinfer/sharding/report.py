"""Where everything lies and why, as rows that a terminal or a notebook renders."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.mesh import platform_of

_LANES = 128


@dataclass(frozen=True)
class Placement:
    """One array's place on the mesh.

    Attributes:
      count: how many arrays of this shape the row stands for (one per layer).
      kept: as what: a dtype or a scheme.
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
    kept: str = ""


@dataclass(frozen=True)
class Sized:
    """An array that is to lie somewhere, and what it is kept in.

    Attributes:
      kept: a dtype or a scheme.
      pieces: (shape, axes, bits of an element) of each array that it is kept in.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kept: str
    pieces: Sequence[tuple[tuple[int, ...], tuple[str | None, ...], int]]


def place(layout: Layout, arrays: Mapping[str, Sized]) -> list[Placement]:
    """Rows for named arrays; those that differ in their layer number alone share a row."""
    rows: dict[str, Placement] = {}
    for name, array in arrays.items():
        key = re.sub(r"\blayers\.\d+\b", "layers.*", name)
        alike = key if key not in rows or rows[key].kept == array.kept else f"{key} {array.kept}"
        old = rows.get(alike)
        here = sum(_bytes(layout, *piece) for piece in array.pieces)
        rows[alike] = Placement(
            key,
            old.count + 1 if old else 1,
            array.shape,
            array.axes,
            _spec(layout, array.axes),
            old.bytes_per_device + here if old else here,
            _why(layout, array.axes),
            array.kept,
        )
    return list(rows.values())


def _bytes(layout: Layout, shape: tuple[int, ...], axes: tuple[str | None, ...], bits: int) -> int:
    """Of one device's part. TPUs keep rows of 128: longer ones are filled up to whole ones."""
    cuts = [1 if axis is None else layout.stored_shards(axis) for axis in axes]
    own = [-(-size // cut) for size, cut in zip(shape, cuts, strict=True)]
    if own and own[-1] > _LANES and platform_of(layout.mesh) == "tpu":
        own[-1] = -(-own[-1] // _LANES) * _LANES
    return -(-math.prod(own) * bits // 8)


def table(rows: Sequence[Placement]) -> list[tuple[str, ...]]:
    """The rows as text, header first and the sum last."""
    lines = [("array", "count", "shape", "kept", "spec", "MB/device", "why")]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        size = f"{row.bytes_per_device / 1e6:.2f}"
        lines.append((row.name, str(row.count), shape, row.kept, row.spec, size, row.why))
    total = sum(row.bytes_per_device for row in rows)
    return [*lines, ("total", "", "", "", "", f"{total / 1e6:.2f}", "")]


def render(lines: Iterable[tuple[str, ...]]) -> str:
    """Text columns, aligned."""
    lines = list(lines)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _spec(layout: Layout, axes: tuple[str | None, ...]) -> str:
    return "(" + ", ".join(_written(part) for part in layout.stored(axes)) + ")"


def _written(part: Any) -> str:
    return "+".join(part) if isinstance(part, tuple) else str(part or "-")


def _why(layout: Layout, axes: tuple[str | None, ...]) -> str:
    named = [axis for axis in axes if axis is not None and axis in layout.kept.rules.axes]
    reasons = [f"{axis}: {layout.kept.decisions[axis].why}" for axis in named]
    return "; ".join(reasons) or "no rule cuts it"
