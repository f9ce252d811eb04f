"""The requests of one kind: who waits, who prefills, who holds which slot. Pure Python, no clock.

There are two kinds, interactive and background; `scheduler` shares the slots out between them.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence

from tpuinfer.engine.job import Job
from tpuinfer.engine.request import Phase
from tpuinfer.programs.slots import SlotLayout


class Lane:
    """Requests of one kind, from the queue to the end.

    Attributes:
      waiting_tokens: tokens of the prompts of those that wait.
      prefilling: as admitted, so the first is the oldest.
      running: those that hold a slot, by slot.
    """

    def __init__(self, layout: SlotLayout) -> None:
        self.waiting_tokens = 0
        self.prefilling: list[Job] = []
        self.running: dict[int, Job] = {}
        self._layout = layout
        # who waits, by the smallest class that holds what they need, in the order added
        self._lines: list[deque[Job]] = [deque() for _ in layout.counts]

    @property
    def waiting(self) -> int:
        """How many have no slot."""
        return sum(map(len, self._lines))

    def wanted(self, more: Job | None = None) -> list[int]:
        """How many wait in the line of each class, `more` among them."""
        counts = list(map(len, self._lines))
        if more is not None:
            counts[self._line_of(more)] += 1
        return counts

    def held(self) -> list[int]:
        """How many slots of each class are taken."""
        counts = [0] * len(self._lines)
        for slot in self.running:
            counts[self._layout.class_of(slot)] += 1
        return counts

    def heads(self) -> list[int]:
        """The lines in which somebody waits, the one with the oldest head first.

        Only heads count: who is behind one can use the same slots, and is younger.
        """
        lines = (line for line, jobs in enumerate(self._lines) if jobs)
        return sorted(lines, key=lambda line: self._lines[line][0].order)

    def join(self, job: Job) -> None:
        """Put a job at the end of its line."""
        self._lines[self._line_of(job)].append(job)
        self.waiting_tokens += len(job.prompt)

    def next_for(self, free_in: Callable[[int], int]) -> tuple[int, int] | None:
        """(the line whose head is next, the class of its slot), or None when nobody can be served.

        Next is the oldest head that some free slot suits, and its slot is of the smallest class
        that does. `free_in` says how many slots of a class are free.
        """
        for line in self.heads():
            for ring_class in range(line, len(self._lines)):
                if free_in(ring_class):
                    return line, ring_class
        return None

    def admit(self, line: int, slot: int, now: float) -> Job:
        """Give the head of a line its slot."""
        job = self._lines[line].popleft()
        self.waiting_tokens -= len(job.prompt)
        job.slot, job.admitted, job.phase = slot, now, Phase.PREFILLING
        self.prefilling.append(job)
        self.running[slot] = job
        return job

    def leave(self, job: Job) -> None:
        """Take a job out, whatever its phase."""
        if job.phase is Phase.WAITING:
            self._lines[self._line_of(job)].remove(job)
            self.waiting_tokens -= len(job.prompt)
            return
        if job.phase is Phase.PREFILLING:
            self.prefilling.remove(job)
        del self.running[job.slot]

    def _line_of(self, job: Job) -> int:
        """The smallest ring class that holds what the job needs."""
        assert job.need <= self._layout.capacity, f"needs {job.need} of {self._layout.capacity}"
        return bisect_left(self._layout.capacities, job.need)


def shortage(wanted: Sequence[int], free: Sequence[int]) -> int:
    """How many would wait for want of a slot, both by ring class.

    From the longest rings down: what is free beyond those who need it, shorter ones may borrow.
    """
    spare = left = 0
    for count, slots in zip(reversed(wanted), reversed(free), strict=True):
        spare += slots
        left += max(0, count - spare)
        spare = max(0, spare - count)
    return left
