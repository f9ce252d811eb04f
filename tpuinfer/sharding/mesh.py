"""From `--mesh 2x4` to a `jax.sharding.Mesh`."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from tpuinfer.errors import MeshError
from tpuinfer.sharding.simulate import prepare_cpu_devices

DATA, EXPERT, SEQ, MODEL = "data", "expert", "seq", "model"
MESH_AXES = (DATA, EXPERT, SEQ, MODEL)
"""In the order in which a mesh has them: neighbours along the last are nearest to each other."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the mesh axes, in order: `axes` = (("data", 2), ("model", 4))."""

    axes: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        return math.prod(size for _, size in self.axes)

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes)


def parse_mesh(text: str | int) -> MeshShape:
    """Read a mesh: "8" is model=8, "2x4" is data=2, model=4, "data=2,expert=4,model=2" names axes.

    `data` and `model` are always there, of size 1 where nobody names them.

    Raises:
      MeshError: none of these forms, an axis twice or unknown, or a size below 1.
    """
    text = str(text).strip().replace(" ", "")
    if text == "auto":
        raise MeshError(
            "mesh is 'auto', which serve, generate, batch, bench and plan take; here, "
            "tpuinfer.experiment.best_mesh(model) gives the planner's best; nearest: 1"
        )
    if re.fullmatch(r"\d+", text):
        sizes = {DATA: 1, MODEL: int(text)}
    elif match := re.fullmatch(r"(\d+)x(\d+)", text):
        sizes = {DATA: int(match[1]), MODEL: int(match[2])}
    elif re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text):
        named: dict[str, int] = {}
        for name, number in (part.split("=") for part in text.split(",")):
            if name not in MESH_AXES or name in named:
                why = "is given twice" if name in named else "is not a mesh axis"
                raise MeshError(f"mesh {text!r}: {name!r} {why}; the axes are {axes_in_words()}")
            named[name] = int(number)
        named = {DATA: 1, MODEL: 1} | named
        sizes = {name: named[name] for name in MESH_AXES if name in named}
    else:
        raise MeshError(f"mesh {text!r} cannot be read: write 8, 2x4 or data=2,model=4")
    for name, size in sizes.items():
        if size < 1:
            raise MeshError(f"mesh {text!r}: {name} is {size}; the nearest size that works is 1")
    return MeshShape(tuple(sizes.items()))


def axes_in_words() -> str:
    """The names of all mesh axes."""
    return f"{', '.join(MESH_AXES[:-1])} and {MESH_AXES[-1]}"


def build_mesh(shape: MeshShape) -> Mesh:
    """Lay `shape` over this process's devices; on the CPU the devices are simulated, saying so.

    Raises:
      MeshError: fewer devices than the mesh needs, or the device cannot be had (held by another
        process, broken driver).
    """
    prepare_cpu_devices(shape.size)
    devices = open_devices()
    platform = devices[0].platform
    if shape.size > len(devices):
        hint = (
            "the CPU backend was started before the mesh was known; build the mesh first"
            if platform == "cpu"
            else f"the nearest that works is --mesh {len(devices)}"
        )
        raise MeshError(
            f"mesh {shape} needs {shape.size} devices, {len(devices)} {platform} found: {hint}"
        )
    names = tuple(name for name, _ in shape.axes)
    sizes = tuple(size for _, size in shape.axes)
    if platform == "cpu" and shape.size > 1:
        log.info("mesh %s: simulating %d devices on the CPU", shape, shape.size)
    elif shape.size < len(devices):
        log.info("mesh %s uses %d of %d %s", shape, shape.size, len(devices), platform)
    if shape.size == len(devices):
        return arranged(shape, devices)
    grid = np.array(devices[: shape.size]).reshape(sizes)
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def arranged(shape: MeshShape, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of all of a slice's devices, laid along its links.

    A mesh axis may take a part of a torus dimension: 2x8 on a 4x4 slice.
    """
    names = tuple(name for name, _ in shape.axes)
    sizes = tuple(size for _, size in shape.axes)
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """The platform of a mesh's devices; a mesh without any stands for TPUs in a plan."""
    return "tpu" if isinstance(mesh, AbstractMesh) else str(mesh.devices.flat[0].platform)


def abstract_mesh(shape: MeshShape) -> AbstractMesh:
    """A mesh without devices: enough to plan on."""
    names = tuple(name for name, _ in shape.axes)
    sizes = tuple(size for _, size in shape.axes)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))


def open_devices() -> list[jax.Device]:
    """All devices of this process.

    Raises:
      MeshError: none can be had: another process holds them, or the driver does not work.
    """
    try:
        return jax.devices()
    except RuntimeError as error:
        text = " ".join(str(error).split())
        busy = re.search(r"already in use|in use by|busy|libtpu_lockfile", text, re.IGNORECASE)
        why = "another process holds it: stop that one first" if busy else "is the driver working?"
        raise MeshError(f"no device could be opened ({why}): {text[:200]}") from error
