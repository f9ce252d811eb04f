"""How much memory a device has, and what it says when that is too little."""

import os
from collections.abc import Sequence

from jax.sharding import AbstractMesh, Mesh

from tpuinfer.errors import MeshError, OutOfMemoryError
from tpuinfer.sharding.report import Placement


def as_mesh_error(error: Exception, placements: Sequence[Placement], less: str) -> MeshError:
    """The failure of a device in our words.

    Args:
      placements: all that lies on the mesh. less: what would need less memory.
    """
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        return MeshError(f"the device failed: {text[:300]}")
    need = sum(row.bytes_per_device for row in placements)
    return OutOfMemoryError(
        f"out of device memory: weights and state take {need / 1e9:.2f} GB per device; {less}"
    )


def usable_bytes(mesh: Mesh | AbstractMesh) -> int:
    """What programs may use of one device of a mesh.

    Simulated devices share half of the machine's memory: the same at every start.
    """
    assert isinstance(mesh, Mesh), "a mesh without devices has no memory: say how much there is"
    device = mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // mesh.size
