"""The least time that a program can take on a chip, and what bounds it.

    matmuls    max(bytes of weights / HBM bandwidth, operations / their rate)
    rings      bytes / HBM bandwidth
    links      of each collective over n devices:
               bytes * (n - 1) / n / bandwidth of a ring; twice for an all-reduce
               all-to-all on a torus: bytes * n / 4 / bandwidth of a ring, as halves go half round

A collective over several mesh axes has a ring for each, as far as the chip has links.

A program takes at least matmuls + rings, and at least links (which may hide behind the others).
The figures of a chip are its vendor's (`planning.hardware`), so no program reaches the bound; good
ones come to half of it and more.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tpuinfer.planning.exchanges import Exchange
from tpuinfer.planning.hardware import Chip
from tpuinfer.planning.topology import Topology
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


def bound(work: Work, topology: Topology) -> Bound:
    """The bound of a program call."""
    chip, share = topology.chip, topology.chip.devices_per_chip
    bandwidth = chip.hbm_bandwidth / share
    flops = sum(count / _rate(chip, kind) for kind, count in work.flops.items()) * share
    return Bound(
        work.weight_bytes / bandwidth,
        flops,
        (work.ring_bytes + work.other_bytes) / bandwidth,
        sum(link_seconds(one, chip) for one in work.exchanges),
    )


def _rate(chip: Chip, kind: str) -> float:
    """Operations a second; what a chip has no unit for runs in bf16."""
    return (chip.flops.int8 if kind == "int8" else None) or chip.flops.bf16


def link_seconds(one: Exchange, chip: Chip) -> float:
    """The least seconds that collectives over the same mesh axes take."""
    devices = one.group
    if devices == 1:
        return 0.0
    rings = sum(size > 1 for size in one.devices)
    links = min(_RING_LINKS * rings, chip.ici_links) if chip.torus else chip.ici_links
    bandwidth = chip.ici_bandwidth * (links / chip.ici_links if links else 1.0)
    if one.kind == "all-to-all" and chip.torus:
        ring = bandwidth / (links / _RING_LINKS)
        return one.nbytes * max(size / 4 for size in one.devices) / ring
    passes = 2 if one.kind == "all-reduce" else 1
    return passes * one.nbytes * (devices - 1) / devices / bandwidth


def per_million(tokens_per_second: float, chips: int, price: float) -> float:
    """What a million tokens cost, for a price of a chip-hour."""
    if tokens_per_second <= 0:
        return math.inf
    return price * chips / 3600 / tokens_per_second * 1e6
