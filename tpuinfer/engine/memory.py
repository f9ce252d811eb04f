"""What a device says when it fails, as one line that says what would fit."""

from collections.abc import Sequence

from tpuinfer.errors import MeshError
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
    return MeshError(
        f"out of device memory: weights and state take {need / 1e9:.2f} GB per device; {less}"
    )
