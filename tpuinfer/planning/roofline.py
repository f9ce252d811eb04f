"""The least time that a program can take on a chip, and what bounds it.

    matmuls    max(bytes of weights / HBM bandwidth, operations / their rate)
    rings      bytes / HBM bandwidth
    links      bytes of collectives * (n - 1) / n / bandwidth of a ring over n devices

A program takes at least matmuls + rings, and at least links (which may hide behind the others).
The figures of a chip are its vendor's (`planning.hardware`), so no program reaches the bound; good
ones come to half of it and more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tpuinfer.planning.hardware import Chip
from tpuinfer.planning.topology import Topology
from tpuinfer.planning.traffic import Collective
from tpuinfer.planning.work import Work

Limit = Literal["HBM", "FLOPs", "ICI"]

_RING_LINKS = 2
"""Links of a chip that a ring uses: one in, one out, each both ways at a time."""


@dataclass(frozen=True)
class Bound:
    """The least seconds of a program call on each device, by what takes them.

    Attributes:
      weights: to read them. flops: to multiply. rings: to read them, and what else is read.
      links: to move what collectives move.
    """

    weights: float
    flops: float
    rings: float
    links: float

    @property
    def seconds(self) -> float:
        return max(max(self.weights, self.flops) + self.rings, self.links)

    @property
    def limit(self) -> Limit:
        """What a faster chip would have more of."""
        local = max(self.weights, self.flops) + self.rings
        if self.links > local:
            return "ICI"
        return "FLOPs" if self.flops > self.weights + self.rings else "HBM"


def bound(work: Work, topology: Topology, model: int) -> Bound:
    """The bound of a program call.

    Args:
      model: devices along the model axis, over which collectives go.
    """
    chip, share = topology.chip, topology.chip.devices_per_chip
    bandwidth = chip.hbm_bandwidth / share
    flops = sum(count / _rate(chip, kind) for kind, count in work.flops.items()) * share
    return Bound(
        work.weight_bytes / bandwidth,
        flops,
        (work.ring_bytes + work.other_bytes) / bandwidth,
        _link_seconds(work.collectives, chip, model),
    )


def _rate(chip: Chip, kind: str) -> float:
    """Operations a second; what a chip has no unit for runs in bf16."""
    return (chip.flops.int8 if kind == "int8" else None) or chip.flops.bf16


def _link_seconds(collectives: Mapping[str, Collective], chip: Chip, devices: int) -> float:
    if devices == 1:
        return 0.0
    links = min(_RING_LINKS, chip.ici_links) if chip.torus else 0
    ring = chip.ici_bandwidth * (links / chip.ici_links if links else 1.0)
    passes = {"all-reduce": 2}
    moved = sum(passes.get(kind, 1) * one.nbytes for kind, one in collectives.items())
    return moved * (devices - 1) / devices / ring


def per_million(tokens_per_second: float, chips: int, price: float) -> float:
    """What a million tokens cost, for a price of a chip-hour."""
    if tokens_per_second <= 0:
        return math.inf
    return price * chips / 3600 / tokens_per_second * 1e6
