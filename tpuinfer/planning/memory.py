"""What lies on one chip's share of memory, reckoned before anything is compiled."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpuinfer.engine import footprint, scratch
from tpuinfer.engine.footprint import Share
from tpuinfer.engine.plan import Plan
from tpuinfer.planning.topology import Topology

_GPU_SHARE = 0.75
"""What jax takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


@dataclass(frozen=True)
class Hbm:
    """Bytes on one device (a chip, or the part of one that jax counts as a device).

    Attributes:
      shares: of weights, rings and state, group by group.
      temporaries: what the most demanding program needs beside them.
      code: a reserve for the programs themselves, which what is left should cover.
      capacity: what programs may use of the device.
    """

    shares: Sequence[Share]
    temporaries: int
    code: int
    capacity: int

    @functools.cached_property
    def by_kind(self) -> Mapping[str, int]:
        found = dict.fromkeys(("weights", "rings", "state"), 0)
        for share in self.shares:
            found[share.kind] += share.bytes
        return found

    @property
    def weights(self) -> int:
        return self.by_kind["weights"]

    @property
    def rings(self) -> int:
        return self.by_kind["rings"]

    @property
    def state(self) -> int:
        return self.by_kind["state"]

    @property
    def used(self) -> int:
        """What arrays take: programs come on top."""
        return self.weights + self.rings + self.state + self.temporaries

    @property
    def headroom(self) -> int:
        """What arrays leave; negative = they do not fit."""
        return self.capacity - self.used

    @property
    def has_room(self) -> bool:
        """Whether what is left covers the reserve for programs."""
        return self.headroom >= self.code

    @property
    def fits(self) -> bool:
        return self.headroom >= 0


def capacity(topology: Topology) -> int:
    """What programs may use of one device, bytes."""
    chip = topology.chip
    share = 1.0 if topology.is_tpu else _GPU_SHARE
    return int(chip.hbm_usable_bytes / chip.devices_per_chip * share)


def estimate(plan: Plan, topology: Topology) -> Hbm:
    """Reckon it from shapes."""
    return Hbm(
        footprint.shares(plan),
        scratch.temporaries(plan),
        scratch.code(plan),
        capacity(topology),
    )
