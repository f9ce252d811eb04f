"""Slices by name: `v5e:2x4`, or as clouds sell them, `v5e-8`; and the meshes that they can be.

The names with a grid are the TPU compiler's own. Clouds count chips (v5e, v6e) or cores, of which
a chip has two (v4, v5p, tpu7x). GPUs have no grid: `h100:8`.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpuinfer.errors import MeshError
from tpuinfer.planning import hardware
from tpuinfer.planning.hardware import Chip
from tpuinfer.sharding.mesh import DATA, MESH_AXES, MODEL, MeshShape

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (1, 1, 1),
    (2, 2, 1),
    (2, 2, 2),
    (2, 2, 4),
    (2, 4, 4),
    (4, 4, 4),
    (4, 4, 8),
    (4, 8, 8),
    (8, 8, 8),
)
_NEAREST = 6
"""Meshes that an error lists where there are many."""

_CORES_COUNTED = ("v4", "v5p", "tpu7x")
"""Whose names at a cloud count cores, two a chip."""


@dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
      grid: chips along each dimension of the torus; of GPUs their number alone.
    """

    chip: Chip
    grid: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.grid))}"

    @property
    def chips(self) -> int:
        return math.prod(self.grid)

    @property
    def devices(self) -> int:
        """What jax counts: a chip may be several."""
        return self.chips * self.chip.devices_per_chip

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus > 0


def parse(text: str) -> Topology:
    """Read a slice's name.

    >>> str(parse("v5e-8")), parse("v5p-8").chips
    ('v5e:2x4', 4)

    Raises:
      MeshError: no such chip or no such slice of it; names the nearest and lists the known.
    """
    match = re.fullmatch(r"\s*([a-z][\w.-]*?)(?:([:-])(\d+(?:x\d+)*))?\s*", text.lower())
    if match is None:
        raise MeshError(
            f"topology {text!r} cannot be read: write v5e:2x4, v5p:2x2x1, v5e-8 or h100:8"
        )
    chip = hardware.find(match[1])
    sizes = tuple(int(size) for size in (match[3] or "1").split("x"))
    known = slices(chip)
    chips = math.prod(sizes)
    if len(sizes) == 1 and match[2] == "-" and chip.name in _CORES_COUNTED:
        chips = max(1, chips // 2)
    if len(sizes) == 1:
        found = [one for one in known if one.chips == chips]
    else:
        found = [one for one in known if sorted(one.grid) == sorted(sizes)]
    if not found:
        near = min(known, key=lambda one: abs(math.log(one.chips / max(1, chips))))
        raise MeshError(
            f"topology {text!r} is no slice of {chip.title}; nearest: {near}; known: "
            f"{', '.join(map(str, known))}"
        )
    return found[0]


def slices(chip: Chip) -> list[Topology]:
    """What there is of a chip, the smallest first."""
    if not chip.torus:
        return [Topology(chip, (count,)) for count in (1, 2, 4, 8)]
    grids: tuple[tuple[int, ...], ...] = _FLAT if chip.torus == 2 else _CUBES
    return [Topology(chip, grid) for grid in grids]


def larger(topology: Topology) -> list[Topology]:
    """Slices of the same chip with more of them, the smallest first."""
    return [one for one in slices(topology.chip) if one.chips > topology.chips]


def meshes(topology: Topology, names: Sequence[str] = (DATA, MODEL)) -> list[MeshShape]:
    """Every way to lay these mesh axes over a slice, the most model-parallel first.

    Args:
      names: mesh axes; data and model are among them always. Other ones of size 1 are left out.
    """
    wanted = [name for name in MESH_AXES if name in names or name in (DATA, MODEL)]
    found = []
    for sizes in _factors(topology.devices, len(wanted)):
        axes = [(name, size) for name, size in zip(wanted, sizes, strict=True)]
        kept = [(name, size) for name, size in axes if size > 1 or name in (DATA, MODEL)]
        found.append(MeshShape(tuple(kept)))
    return sorted(found, key=lambda one: [-size for _, size in reversed(one.axes)])


def _factors(number: int, count: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of so many, in order.

    >>> _factors(4, 2)
    [(1, 4), (2, 2), (4, 1)]
    """
    if count == 1:
        return [(number,)]
    divisors = [one for one in range(1, number + 1) if number % one == 0]
    return [(one, *rest) for one in divisors for rest in _factors(number // one, count - 1)]


def check_mesh(topology: Topology, shape: MeshShape) -> None:
    """Refuse a mesh that does not cover the slice.

    Raises:
      MeshError: names the nearest that does, of the same axes, and lists others.
    """
    if shape.size == topology.devices:
        return
    axes = dict(shape.axes)
    legal = meshes(topology, list(axes))

    def far(one: MeshShape) -> float:
        sizes = dict(one.axes)
        return sum(abs(math.log(sizes.get(name, 1) / axes[name])) for name in axes)

    near = sorted(legal, key=far)
    others = legal if len(axes) == 2 else near[:_NEAREST]
    raise MeshError(
        f"mesh {written(shape)} is of {shape.size} devices, {topology} has {topology.devices}; "
        f"nearest: {written(near[0])}; legal: {', '.join(written(one) for one in others)}"
        f"{'' if len(others) == len(legal) else ', ...'}"
    )


def written(shape: MeshShape) -> str:
    """A mesh as `--mesh` takes it, in short.

    >>> written(MeshShape((("data", 2), ("model", 4))))
    '2x4'
    >>> written(MeshShape((("data", 1), ("expert", 4), ("model", 2))))
    'expert=4,model=2'
    """
    sizes = dict(shape.axes)
    if set(sizes) - {DATA, MODEL}:
        return ",".join(
            f"{name}={size}" for name, size in shape.axes if size > 1 or name not in (DATA, MODEL)
        )
    data, model = sizes.get(DATA, 1), sizes.get(MODEL, 1)
    return str(model) if data == 1 else f"{data}x{model}"


def several(text: str) -> list[Topology]:
    """Slices with commas between them.

    Raises:
      MeshError: one of them cannot be read, or one stands there twice.
    """
    found = [parse(part) for part in text.split(",")]
    for one, count in itertools.groupby(sorted(map(str, found))):
        if len(list(count)) > 1:
            raise MeshError(f"topology {text!r}: {one} stands there twice")
    return found
