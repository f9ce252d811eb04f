"""Who runs when: waiting -> prefilling -> decoding -> finished. Pure Python, no clock.

What always holds:
  - a request may use any slot whose ring holds what it needs; no slot goes to a request while one
    that was added before it waits and could use that slot;
  - nobody waits while a slot is free that suits: short requests pass a long one that waits for a
    long ring, and borrow long rings that nobody else waits for;
  - the oldest prefilling request advances by one chunk in every prefill dispatch;
  - every decoding request that still needs tokens is in every decode dispatch;
  - no dispatch is planned for tokens that are already on their way.
From these follows that nothing starves: the slots a request could use are held by requests added
before it, and once it has one, only those admitted before it go before it.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.engine.slots import SlotPool
from tpuinfer.errors import RequestError
from tpuinfer.programs.buckets import Chunk
from tpuinfer.programs.slots import SlotLayout


class QueueFullError(RequestError):
    """As many requests wait as may; the same request can be served later."""


@dataclass(eq=False, slots=True)
class Job:
    """One request as the scheduler sees it.

    Attributes:
      prompt: its tokens, whatever the caller does to the request meanwhile.
      limit: the most tokens it may generate, >= 1.
      need: tokens its ring must hold, at most those of the longest.
      stop_ids: token ids that end its row on the device.
      seed: in [0, 2**32).
      chunks: its prompt, cut.
      order: its place among all that were ever added.
      slot: where it runs, while it is prefilling or decoding. admitted: when it got it, seconds.
      prefilled: chunks dispatched. promised: generated tokens dispatched, read or not, <= limit.
    """

    request: Request
    prompt: tuple[int, ...]
    limit: int
    need: int
    stop_ids: tuple[int, ...]
    seed: int
    chunks: tuple[Chunk, ...]
    phase: Phase = Phase.WAITING
    order: int = -1
    slot: int = -1
    admitted: float = 0.0
    prefilled: int = 0
    promised: int = 0

    @property
    def next_chunk(self) -> Chunk:
        """The chunk of the prompt to be dispatched next."""
        return self.chunks[self.prefilled]

    def next_work(self) -> PrefillWork:
        """The next chunk, as the runner takes it."""
        chunk = self.next_chunk
        return PrefillWork(
            slot=self.slot,
            tokens=self.prompt[chunk.start : chunk.start + chunk.size],
            start=chunk.start,
            bucket=chunk.bucket,
            last=self.prefilled == len(self.chunks) - 1,
            limit=self.limit,
            stop_ids=self.stop_ids,
            seed=self.seed,
            choice=self.request.choice,
            params=self.request.params,
        )


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One prefill dispatch. `rows`: the jobs whose first token it samples, by slot."""

    work: list[PrefillWork]
    rows: dict[int, Job]


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One decode dispatch. `rows`: the jobs it generates for, by slot."""

    steps: int
    rows: dict[int, Job]


class Scheduler:
    """Plans one prefill and one decode dispatch at a time; a plan counts as dispatched."""

    def __init__(
        self,
        layout: SlotLayout,
        *,
        rows: Mapping[int, int],
        steps: int = 1,
        max_waiting: int,
        wait: float = 0.0,
    ) -> None:
        """The slots to fill, and how.

        Args:
          layout: the slots, their ring classes and data shards.
          rows: bucket -> the most rows per data shard that one prefill takes.
          steps: tokens a row per decode dispatch.
          max_waiting: see `add`.
          wait: seconds for which a prefill that is not full is held back; see `held`.
        """
        self._layout = layout
        self._rows = {bucket: min(most, layout.per_shard) for bucket, most in rows.items()}
        self._steps = steps
        self._max_waiting = max_waiting
        self._wait = wait
        self._pool = SlotPool(layout)
        self._added = 0
        # who waits, by the smallest class that holds what they need, in the order added
        self._lines: list[deque[Job]] = [deque() for _ in layout.counts]
        self._prefilling: list[Job] = []  # as admitted, so the first is the oldest
        self._decoding: dict[int, Job] = {}

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines))

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._pool.used

    def add(self, job: Job) -> None:
        """Put a job at the end of its line.

        Raises:
          QueueFullError: the free slots that would suit are spoken for, and `max_waiting` requests
            wait beyond those that have one to go to.
        """
        line = self._line_of(job)
        if self._left_waiting(line) > self._max_waiting:
            raise QueueFullError(
                f"{self.running} requests are running and {self.waiting} are waiting: "
                f"at most {self._max_waiting} may wait; try again later"
            )
        job.order = self._added
        self._added += 1
        self._lines[line].append(job)

    def admit(self, now: float) -> list[Job]:
        """Give free slots to those who wait: the oldest first, the shortest ring that suits."""
        admitted = []
        while (found := self._next_admission()) is not None:
            line, ring_class = found
            job = self._lines[line].popleft()
            slot = self._pool.acquire(ring_class)
            assert slot is not None, f"class {ring_class} has no free slot"
            job.slot, job.admitted, job.phase = slot, now, Phase.PREFILLING
            self._prefilling.append(job)
            admitted.append(job)
        return admitted

    def held(self, now: float) -> float:
        """Seconds for which the next prefill is held back, so that more may join it; else 0.

        Held is only a batch that is short of rows on some shard and led by a job that has had no
        chunk yet, until `wait` seconds after that one was admitted: no job is held for longer in
        all, and none once its prompt has begun.
        """
        if not self._wait or not self._prefilling or self._prefilling[0].prefilled:
            return 0.0
        left = self._prefilling[0].admitted + self._wait - now
        return left if left > 0 and not self._gather()[1] else 0.0

    def plan_prefill(self, now: float) -> PrefillPlan | None:
        """The next chunk of the oldest prefilling job, and what can share its dispatch.

        In order of admission, every job whose next chunk has the same bucket joins while its data
        shard has rows left. In the order a, c, d, b, with one row a shard:

            shard 0   a: [8 @8] [3 @4]   then b: [8 @8]
            shard 1   c: [8 @8] [8 @8]
            shard 2   d: [2 @2]
            plans     a0 c0 | a1 | c1 b0 | d0

        and with two rows, b0 shares the first. None when nothing is to do, or the batch is `held`.
        """
        if self.held(now):
            return None
        batch, _ = self._gather()
        if not batch:
            return None
        plan = PrefillPlan([], {})
        for job in batch:
            work = job.next_work()
            plan.work.append(work)
            job.prefilled += 1
            if work.last:
                plan.rows[job.slot] = job
                self._prefilling.remove(job)
                self._decoding[job.slot] = job
                job.phase = Phase.DECODING
                job.promised = 1
        return plan

    def plan_decode(self) -> DecodePlan | None:
        """All rows that need more than is on its way, for as many steps as one can use."""
        rows = {slot: job for slot, job in self._decoding.items() if job.promised < job.limit}
        if not rows:
            return None
        steps = min(self._steps, max(job.limit - job.promised for job in rows.values()))
        for job in rows.values():
            job.promised = min(job.promised + steps, job.limit)
        return DecodePlan(steps, rows)

    def finish(self, job: Job) -> None:
        """Take a job out, whatever its phase, and free its slot."""
        if job.phase is Phase.WAITING:
            self._lines[self._line_of(job)].remove(job)
        elif job.phase is Phase.PREFILLING:
            self._prefilling.remove(job)
        elif job.phase is Phase.DECODING:
            del self._decoding[job.slot]
        else:
            raise AssertionError(f"request {job.request.request_id} has finished already")
        if job.phase is not Phase.WAITING:
            self._pool.release(job.slot)
        job.phase = Phase.FINISHED

    def _line_of(self, job: Job) -> int:
        """The smallest ring class that holds what the job needs."""
        assert job.need <= self._layout.capacity, f"needs {job.need} of {self._layout.capacity}"
        return bisect_left(self._layout.capacities, job.need)

    def _next_admission(self) -> tuple[int, int] | None:
        """(the line whose head is next, the class of its slot), or None when nobody can be served.

        Next is the oldest head that some free slot suits. Only heads count: who is behind one can
        use the same slots, and is younger.
        """
        best = free = None
        order = self._added
        for line in reversed(range(len(self._lines))):
            if self._pool.free_in(line):
                free = line  # the shortest free ring of those that suit this line
            jobs = self._lines[line]
            if jobs and free is not None and jobs[0].order < order:
                best, order = (line, free), jobs[0].order
        return best

    def _left_waiting(self, line: int) -> int:
        """How many would wait for want of a slot if one more job stood in `line`.

        From the longest rings down: what is free beyond those who need it, shorter ones may borrow.
        """
        spare = left = 0
        for index in reversed(range(len(self._lines))):
            spare += self._pool.free_in(index)
            wanted = len(self._lines[index]) + (index == line)
            left += max(0, wanted - spare)
            spare = max(0, spare - wanted)
        return left

    def _gather(self) -> tuple[list[Job], bool]:
        """The jobs of the next prefill, as admitted, and whether every data shard is full."""
        if not self._prefilling:
            return [], False
        bucket = self._prefilling[0].next_chunk.bucket
        room = [self._rows[bucket]] * self._layout.shards
        batch = []
        for job in self._prefilling:
            shard = self._layout.shard_of(job.slot)
            if room[shard] and job.next_chunk.bucket == bucket:
                room[shard] -= 1
                batch.append(job)
        return batch, not any(room)
