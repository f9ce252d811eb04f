"""Which row of the batch is which slot, in ring classes and over data shards. Pure Python.

Slots come in classes of their own ring length. Every data shard holds an equal part of each class,
and numbers its slots one class after the other, so that a slot's number says both where it lies and
how long its ring is. Classes 4 x 2048 and 2 x 16384 on two data shards:

    shard        0                1
    slot         0    1    2      3    4    5
    class        0    0    1      0    0    1
    capacity     2k   2k   16k    2k   2k   16k
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from tpuinfer.errors import ConfigError


@dataclass(frozen=True)
class SlotLayout:
    """The numbering of slots.

    Attributes:
      counts: slots of each class, over all data shards; capacities ascend.
      capacities: tokens that a slot of each class holds.
      shards: data shards.
    """

    counts: tuple[int, ...]
    capacities: tuple[int, ...]
    shards: int = 1

    def __post_init__(self) -> None:
        assert len(self.counts) == len(self.capacities) > 0
        assert list(self.capacities) == sorted(set(self.capacities)), self.capacities
        for count in self.counts:
            if count < 1 or count % self.shards:
                near = max(1, round(count / self.shards)) * self.shards
                raise ConfigError(
                    f"a class of {count} slots does not divide over {self.shards} data shards; "
                    f"nearest: {near}"
                )

    @property
    def slots(self) -> int:
        """Slots in all."""
        return sum(self.counts)

    @property
    def per_shard(self) -> int:
        """Slots of all classes on one data shard."""
        return self.slots // self.shards

    @property
    def capacity(self) -> int:
        """Tokens that the longest ring holds."""
        return self.capacities[-1]

    @functools.cached_property
    def spans(self) -> tuple[range, ...]:
        """For each class, its slots as numbered *within* a data shard."""
        spans, start = [], 0
        for count in self.counts:
            spans.append(range(start, start + count // self.shards))
            start += count // self.shards
        return tuple(spans)

    def shard_of(self, slot: int) -> int:
        return slot // self.per_shard

    def class_of(self, slot: int) -> int:
        local = slot % self.per_shard
        return next(index for index, span in enumerate(self.spans) if local in span)

    def capacity_of(self, slot: int) -> int:
        return self.capacities[self.class_of(slot)]

    def members(self, ring_class: int, shard: int) -> Sequence[int]:
        """The slots of one class on one data shard."""
        span, first = self.spans[ring_class], shard * self.per_shard
        return range(first + span.start, first + span.stop)
