"""Which slots are free. Pure Python."""

from collections import deque

from tpuinfer.programs.slots import SlotLayout


class SlotPool:
    """Free slots of each ring class, handed out round-robin over the data shards.

    Each shard so does its share. A class of 4 and one of 2 on two data shards:

        shard        0            1
        slot         0   1   2    3   4   5
        class        0   0   1    0   0   1
        acquired     1st 3rd 1st  2nd 4th 2nd    -> class 0: 0, 3, 1, 4; class 1: 2, 5

    A shard with nothing free is passed over. A released slot goes to the end of its own line.
    """

    def __init__(self, layout: SlotLayout) -> None:
        self._layout = layout
        self._free = [
            [deque(layout.members(ring_class, shard)) for shard in range(layout.shards)]
            for ring_class in range(len(layout.counts))
        ]
        self._turns = [0] * len(layout.counts)
        self._counts = list(layout.counts)
        self._used: set[int] = set()

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return len(self._used)

    def free_in(self, ring_class: int) -> int:
        """How many slots of a class are free."""
        return self._counts[ring_class]

    def acquire(self, ring_class: int) -> int | None:
        """The next free slot of a class, or None when all are taken."""
        lines, turn = self._free[ring_class], self._turns[ring_class]
        for shard in range(turn, turn + len(lines)):
            line = lines[shard % len(lines)]
            if line:
                self._turns[ring_class] = (shard + 1) % len(lines)
                self._counts[ring_class] -= 1
                slot = line.popleft()
                self._used.add(slot)
                return slot
        return None

    def release(self, slot: int) -> None:
        assert slot in self._used, f"slot {slot} is not taken"
        self._used.remove(slot)
        ring_class = self._layout.class_of(slot)
        self._counts[ring_class] += 1
        self._free[ring_class][self._layout.shard_of(slot)].append(slot)
