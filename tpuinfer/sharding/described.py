"""Devices that are described, not there: the TPU compiler takes them for real ones.

This and `sharding.simulate` are what must act before a backend exists: the compiler's library looks
for the machine's own TPU, and for other processes that hold it, unless it is told not to.
"""

import functools
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import MeshShape, arranged

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""It describes any slice, whatever type is named here."""


def has_compiler() -> bool:
    """Whether the TPU compiler is installed."""
    return importlib.util.find_spec("libtpu") is not None


def described_devices(name: str) -> list[Any]:
    """The devices of a slice, such as "v5e:2x4".

    Raises:
      MeshError: the compiler is not installed, or does not know the slice.
    """
    if not has_compiler():
        raise MeshError(
            "the TPU compiler is not installed: pip install 'tpuinfer[tpu]' (no TPU is needed)"
        )
    os.environ.update({key: os.environ.get(key, value) for key, value in _QUIET.items()})
    try:
        return list(_description(name).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise MeshError(f"the TPU compiler does not know {name}: {text[:200]}") from error


@functools.cache
def _description(name: str) -> Any:
    """One for the whole process.

    With two of a v6e, compiling for the second after the first is a segmentation fault in libtpu
    0.0.42.1.
    """
    one_chip = set(name.partition(":")[2].split("x")) == {"1"}
    options: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if one_chip else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options)


def described_mesh(name: str, shape: MeshShape) -> Mesh:
    """A mesh of the devices of a slice that is not here, laid along its links.

    Raises:
      MeshError: as `described_devices`; or the slice has another number of devices.
    """
    devices = described_devices(name)
    if len(devices) != shape.size:
        raise MeshError(
            f"mesh {shape} is of {shape.size} devices, and the TPU compiler describes {name} as "
            f"{len(devices)}: it cannot compile for it; nearest: leave out --compile"
        )
    return arranged(shape, devices)
