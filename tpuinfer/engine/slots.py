"""Which slots are free. Pure Python."""

from collections import deque


class SlotPool:
    """Free slots, handed out round-robin over the data shards, so that each does its share.

    Slot s lives on data shard s // (slots // shards). With 6 slots on 3 shards:

        shard        0      1      2
        slots      0  1   2  3   4  5
        acquired   1st    2nd    3rd        -> 0, 2, 4, and then 1, 3, 5
                     4th    5th    6th

    A shard with nothing free is passed over. A released slot goes to the end of its shard's line.
    """

    def __init__(self, slots: int, shards: int = 1) -> None:
        assert slots >= 1, f"{slots} slots"
        assert slots % shards == 0, f"{slots} slots do not divide over {shards} data shards"
        self.slots = slots
        self._per_shard = slots // shards
        self._free = [
            deque(range(first, first + self._per_shard))
            for first in range(0, slots, self._per_shard)
        ]
        self._used: set[int] = set()
        self._turn = 0

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.slots - len(self._used)

    def shard_of(self, slot: int) -> int:
        return slot // self._per_shard

    def acquire(self) -> int | None:
        """The next free slot, or None when all are taken."""
        shards = len(self._free)
        for shard in range(self._turn, self._turn + shards):
            line = self._free[shard % shards]
            if line:
                self._turn = (shard + 1) % shards
                slot = line.popleft()
                self._used.add(slot)
                return slot
        return None

    def release(self, slot: int) -> None:
        assert slot in self._used, f"slot {slot} is not taken"
        self._used.remove(slot)
        self._free[self.shard_of(slot)].append(slot)
