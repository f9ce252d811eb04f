"""What travels when arrays that lie by one layout are wanted by another.

    8 rows                  device 0    device 1    device 2    device 3      data=2, model=2
    kept over model         0-3         4-7         0-3         4-7
    wanted over data        0-3         0-3         4-7         4-7
    comes                   -           0-3         4-7         -

A device is sent what it needs and has not; how often a part is on its way is for the compiler.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from tpuinfer.errors import MeshError
from tpuinfer.sharding.layout import AnyMesh, Axes, Layout
from tpuinfer.sharding.report import Sized
from tpuinfer.sharding.rules import as_names

Place = Callable[[Axes], PartitionSpec]


@dataclass(frozen=True)
class Moved:
    """Arrays that are wanted elsewhere than they lie.

    Attributes:
      count: how many arrays of this shape the row stands for (one per layer).
      kept: as what: a dtype or a scheme.
      before, after: their PartitionSpecs, as text.
      bytes: that one device is sent, the one that is sent most, of all `count` arrays together.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    kept: str
    before: str
    after: str
    bytes: int


def moves(before: Layout, after: Layout, arrays: Mapping[str, Sized]) -> list[Moved]:
    """What moves between the places where two layouts keep arrays, most first.

    Args:
      arrays: by name, of one shape under both layouts; those that differ in their layer number
        alone share a row.

    Returns:
      A row for each that lies elsewhere after; also where no bytes travel, as a part of what is
      there is enough.

    Raises:
      MeshError: the meshes are not of the same devices.
    """
    return _moves(arrays, (before.mesh, before.stored), (after.mesh, after.stored))


def resharding(layout: Layout, arrays: Mapping[str, Sized]) -> list[Moved]:
    """What weights travel in each call of a prefill that has rules of its own; none if it has not.

    Weights that prefill gathers are among them: each device is sent the rest.
    """
    if layout.prefill is layout:
        return []
    here = layout.mesh
    return _moves(arrays, (here, layout.stored), (here, layout.prefill.spec))


def total(rows: Sequence[Moved]) -> int:
    """Bytes that one device is sent at most."""
    return sum(row.bytes for row in rows)


def table(rows: Sequence[Moved]) -> list[tuple[str, ...]]:
    """The rows as text, header first and the sum last; `report.render` aligns them."""
    lines = [("array", "count", "shape", "kept", "from", "to", "MB/device")]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        size = f"{row.bytes / 1e6:.2f}"
        lines.append((row.name, str(row.count), shape, row.kept, row.before, row.after, size))
    return [*lines, ("total", "", "", "", "", "", f"{total(rows) / 1e6:.2f}")]


def received(
    shape: tuple[int, ...],
    before: PartitionSpec,
    after: PartitionSpec,
    mesh: AnyMesh,
    onto: AnyMesh | None = None,
) -> int:
    """Elements of an array that one device is sent, the one that is sent most.

    Args:
      mesh: of `before`. onto: of `after`; None = the same.

    Raises:
      MeshError: the meshes are not of the same devices.
    """
    if not shape:
        return 0
    has, needs = _parts(shape, before, mesh), _parts(shape, after, onto or mesh)
    if onto is not None and onto is not mesh:
        needs = needs[:, _order(mesh, onto)]
    low = np.maximum(has[0], needs[0])
    high = np.minimum(has[1], needs[1])
    there = np.maximum(high - low, 0).prod(axis=-1)
    return int(((needs[1] - needs[0]).prod(axis=-1) - there).max())


def _moves(
    arrays: Mapping[str, Sized], before: tuple[AnyMesh, Place], after: tuple[AnyMesh, Place]
) -> list[Moved]:
    (mesh, kept), (onto, wanted) = before, after
    _order(mesh, onto)

    @functools.cache
    def size(shape: tuple[int, ...], axes: Axes, bits: int) -> int:
        sent = received(shape, kept(axes), wanted(axes), mesh, onto)
        return -(-sent * bits // 8)

    rows: dict[tuple[Any, ...], Moved] = {}
    for name, array in arrays.items():
        if mesh == onto and all(kept(axes) == wanted(axes) for _, axes, _ in array.pieces):
            continue
        key = re.sub(r"\blayers\.\d+\b", "layers.*", name)
        here = sum(size(*piece) for piece in array.pieces)
        old = rows.get((key, array.shape, array.kept))
        rows[key, array.shape, array.kept] = Moved(
            key,
            old.count + 1 if old else 1,
            array.shape,
            array.kept,
            _text(kept(array.axes)),
            _text(wanted(array.axes)),
            old.bytes + here if old else here,
        )
    return sorted(rows.values(), key=lambda row: -row.bytes)


def _text(spec: PartitionSpec) -> str:
    return "(" + ", ".join("+".join(as_names(place)) or "-" for place in spec) + ")"


def _parts(shape: tuple[int, ...], spec: PartitionSpec, mesh: AnyMesh) -> np.ndarray:
    """Where each device's part begins and ends: [2, devices, dimensions]."""
    names = list(mesh.shape)
    sizes = tuple(mesh.shape.values())
    at = dict(zip(names, np.indices(sizes).reshape(len(sizes), -1), strict=True))
    begins, ends = [], []
    for size, place in itertools.zip_longest(shape, spec):  # a spec may name the first alone
        number, pieces = np.zeros(math.prod(sizes), np.int64), 1
        for name in as_names(place):
            number = number * mesh.shape[name] + at[name]
            pieces *= mesh.shape[name]
        each = -(-size // pieces)
        begins.append(np.minimum(number * each, size))
        ends.append(np.minimum((number + 1) * each, size))
    return np.stack([np.stack(begins, -1), np.stack(ends, -1)])


def _order(mesh: AnyMesh, onto: AnyMesh) -> np.ndarray:
    """Of each device of a mesh, its number on the other; without devices, by their order."""
    if mesh.size != onto.size:
        raise MeshError(
            f"a mesh of {mesh.size} devices and one of {onto.size}: what moves between them is of "
            f"the same devices; nearest: a mesh of {mesh.size}"
        )
    if not isinstance(mesh, Mesh) or not isinstance(onto, Mesh):
        return np.arange(mesh.size)
    number = {device: at for at, device in enumerate(onto.devices.flat)}
    if any(device not in number for device in mesh.devices.flat):
        raise MeshError("two meshes of other devices: nothing can be said of what moves")
    return np.array([number[device] for device in mesh.devices.flat])
