"""Who runs when: waiting -> prefilling -> decoding -> finished. Pure Python.

What always holds:
  - requests are admitted in the order they were added, each into a slot of its own;
  - the oldest prefilling request advances by one chunk in every prefill dispatch;
  - every decoding request that still needs tokens is in every decode dispatch;
  - no dispatch is planned for tokens that are already on their way.
From these follows that nothing starves: a request waits for the chunks and tokens of those before
it, whatever arrives after it.
"""

from collections import deque
from dataclasses import dataclass

from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.engine.slots import SlotPool
from tpuinfer.errors import RequestError
from tpuinfer.programs.buckets import Chunk


class QueueFullError(RequestError):
    """As many requests wait as may; the same request can be served later."""


@dataclass(eq=False, slots=True)
class Job:
    """One request as the scheduler sees it.

    Attributes:
      prompt: its tokens, whatever the caller does to the request meanwhile.
      limit: the most tokens it may generate, >= 1.
      stop_ids: token ids that end its row on the device.
      seed: in [0, 2**32).
      chunks: its prompt, cut.
      slot: where it runs, while it is prefilling or decoding.
      prefilled: chunks dispatched. promised: generated tokens dispatched, read or not, <= limit.
    """

    request: Request
    prompt: tuple[int, ...]
    limit: int
    stop_ids: tuple[int, ...]
    seed: int
    chunks: tuple[Chunk, ...]
    phase: Phase = Phase.WAITING
    slot: int = -1
    prefilled: int = 0
    promised: int = 0

    def next_work(self) -> PrefillWork:
        """The next chunk of the prompt, as the runner takes it."""
        chunk = self.chunks[self.prefilled]
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

    def __init__(self, slots: int, shards: int = 1, *, steps: int = 1, max_waiting: int) -> None:
        """`steps`: tokens a row per decode dispatch; `max_waiting`: see `add`."""
        self._pool = SlotPool(slots, shards)
        self._steps = steps
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []  # as admitted, so the first is the oldest
        self._decoding: dict[int, Job] = {}

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._pool.slots - self._pool.free

    def add(self, job: Job) -> None:
        """Put a job at the end of the line.

        Raises:
          QueueFullError: every free slot is spoken for and `max_waiting` more are waiting.
        """
        if len(self._waiting) >= self._pool.free + self._max_waiting:
            raise QueueFullError(
                f"{self.running} requests are running and {self.waiting} are waiting: "
                f"at most {self._max_waiting} may wait; try again later"
            )
        self._waiting.append(job)

    def admit(self) -> list[Job]:
        """Give the free slots to those who wait, first come first served."""
        admitted = []
        while self._waiting and (slot := self._pool.acquire()) is not None:
            job = self._waiting.popleft()
            job.slot = slot
            job.phase = Phase.PREFILLING
            self._prefilling.append(job)
            admitted.append(job)
        return admitted

    def plan_prefill(self) -> PrefillPlan | None:
        """The next chunk of the oldest prefilling job, and what can share its dispatch.

        On every other data shard the oldest job joins if its next chunk has the same bucket. In the
        order of admission a, c, d, b:

            shard 0   a: [8 @8] [3 @4]   then b: [8 @8]
            shard 1   c: [8 @8] [8 @8]
            shard 2   d: [2 @2]
            plans     a0 c0 | a1 | c1 b0 | d0
        """
        if not self._prefilling:
            return None
        oldest: dict[int, Job] = {}
        for job in self._prefilling:
            oldest.setdefault(self._pool.shard_of(job.slot), job)
        bucket = self._prefilling[0].chunks[self._prefilling[0].prefilled].bucket
        plan = PrefillPlan([], {})
        for job in oldest.values():
            work = job.next_work()
            if work.bucket != bucket:
                continue
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
            self._waiting.remove(job)
        elif job.phase is Phase.PREFILLING:
            self._prefilling.remove(job)
        elif job.phase is Phase.DECODING:
            del self._decoding[job.slot]
        else:
            raise AssertionError(f"request {job.request.request_id} has finished already")
        if job.phase is not Phase.WAITING:
            self._pool.release(job.slot)
        job.phase = Phase.FINISHED
