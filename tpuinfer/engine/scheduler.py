"""Who runs when: waiting -> prefilling -> decoding -> finished. Pure Python, no clock.

What always holds:
  - a request may use any slot whose ring holds what it needs; no slot goes to a request while one
    that was added before it waits and could use that slot;
  - nobody waits while a slot is free that suits: short requests pass a long one that waits for a
    long ring, and borrow long rings that nobody else waits for;
  - the oldest prefilling request advances by one chunk in every prefill dispatch;
  - every decoding request that still needs tokens is in every decode dispatch;
  - no dispatch is planned for tokens that are already on their way, or in which nobody would pick.
From these follows that nothing starves: the slots a request could use are held by requests added
before it, and once it has one, only those admitted before it go before it.

A constrained request picks each token with a mask of its own, which is made from the token before.
  - It picks when its mask is there, one token, and the plan takes the mask along; else it waits in
    the dispatch, alive.
  - While one that is decoding needs tokens, dispatches are of one step, so that it need not sit out
    many; they are never held up for it.
a is constrained and its third token ends it; b is not; 4 steps a dispatch:

    dispatch     P0   D1   D2   D3   D4   D5        D6
    steps             1    1    1    1    1         4
    a picks      1    0    1    0    1    0
    b picks           1    1    1    1    1         4
    read              P0   D1   D2   D3   D4: done  D5
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping

from tpuinfer.engine.job import DecodePlan, Job, Mask, PrefillPlan
from tpuinfer.engine.request import Phase
from tpuinfer.engine.slots import SlotPool
from tpuinfer.errors import RequestError
from tpuinfer.programs.slots import SlotLayout


class QueueFullError(RequestError):
    """As many requests wait as may, or as many tokens; the same request can be served later."""


class Scheduler:
    """Plans one prefill and one decode dispatch at a time; a plan counts as dispatched."""

    def __init__(
        self,
        layout: SlotLayout,
        *,
        rows: Mapping[int, int],
        steps: int = 1,
        max_waiting: int,
        max_waiting_tokens: int | None = None,
        wait: float = 0.0,
    ) -> None:
        """The slots to fill, and how.

        Args:
          layout: the slots, their ring classes and data shards.
          rows: bucket -> the most rows per data shard that one prefill takes.
          steps: tokens a row per decode dispatch.
          max_waiting, max_waiting_tokens: see `add`.
          wait: seconds for which a prefill that is not full is held back; see `held`.
        """
        self._layout = layout
        self._rows = {bucket: min(most, layout.per_shard) for bucket, most in rows.items()}
        self._steps = steps
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._wait = wait
        self._pool = SlotPool(layout)
        self._added = self._waiting_tokens = 0
        # who waits, by the smallest class that holds what they need, in the order added
        self._lines: list[deque[Job]] = [deque() for _ in layout.counts]
        self._prefilling: list[Job] = []  # as admitted, so the first is the oldest
        self._decoding: dict[int, Job] = {}

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines))

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the prompts of those that wait."""
        return self._waiting_tokens

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return self._pool.used

    @property
    def ring_tokens(self) -> int:
        """Tokens in all rings, those that are being dispatched included."""
        running = (*self._prefilling, *self._decoding.values())
        return sum(min(job.written, self._layout.capacity_of(job.slot)) for job in running)

    def add(self, job: Job) -> None:
        """Put a job at the end of its line.

        Raises:
          QueueFullError: the free slots that would suit are spoken for, and `max_waiting` requests
            wait beyond those that have one to go to; or others wait, and their prompts and this one
            have more than `max_waiting_tokens` together.
        """
        line = self._line_of(job)
        left = self._left_waiting(line)
        if left > self._max_waiting:
            raise QueueFullError(
                f"{self.running} requests are running and {self.waiting} are waiting: "
                f"at most {self._max_waiting} may wait; try again later"
            )
        tokens, most = self._waiting_tokens + len(job.prompt), self._max_waiting_tokens
        if most is not None and left and self._waiting_tokens and tokens > most:
            raise QueueFullError(
                f"{self.waiting} requests with {self._waiting_tokens} prompt tokens are waiting, "
                f"and this one has {len(job.prompt)}: at most {most} tokens may wait; "
                "try again later"
            )
        job.order = self._added
        self._added += 1
        self._waiting_tokens += len(job.prompt)
        self._lines[line].append(job)

    def admit(self, now: float) -> list[Job]:
        """Give free slots to those who wait: the oldest first, the shortest ring that suits."""
        admitted = []
        while (found := self._next_admission()) is not None:
            line, ring_class = found
            job = self._lines[line].popleft()
            self._waiting_tokens -= len(job.prompt)
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
        plan = PrefillPlan([], {}, {}, {})
        for job in batch:
            work = job.next_work()
            plan.work.append(work)
            job.prefilled += 1
            if job.request.params.prompt_logprobs is not None:
                plan.scored[job.slot] = job
            if work.last:
                plan.rows[job.slot] = job
                self._prefilling.remove(job)
                self._decoding[job.slot] = job
                job.phase = Phase.DECODING
                job.promised = 1
        plan.masks.update(_take_masks(plan.rows))
        return plan

    def plan_decode(self) -> DecodePlan | None:
        """All rows that need more than is on its way, for as many steps as one can use.

        None when there is none, or all of them wait for masks.
        """
        needy = {slot: job for slot, job in self._decoding.items() if job.promised < job.limit}
        rows = {slot: job for slot, job in needy.items() if job.ready}
        if not rows:
            return None
        steps = min(self._steps, max(job.limit - job.promised for job in rows.values()))
        if any(job.constrained for job in needy.values()):
            steps = 1
        quotas = dict.fromkeys(needy, 0)
        for slot, job in rows.items():
            quotas[slot] = min(steps, job.limit - job.promised)
            job.promised += quotas[slot]
        return DecodePlan(steps, rows, quotas, _take_masks(rows))

    def finish(self, job: Job) -> None:
        """Take a job out, whatever its phase, and free its slot."""
        if job.phase is Phase.WAITING:
            self._lines[self._line_of(job)].remove(job)
            self._waiting_tokens -= len(job.prompt)
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


def _take_masks(rows: Mapping[int, Job]) -> dict[int, Mask]:
    """The masks of those that pick now, which are used up by it."""
    masks = {}
    for slot, job in rows.items():
        if job.constrained:
            assert job.mask is not None, f"{job.request.request_id} has no mask to pick with"
            masks[slot], job.mask = job.mask, None
    return masks
