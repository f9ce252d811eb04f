"""Who runs when: waiting -> prefilling -> decoding -> finished. Pure Python, no clock.

What always holds, for interactive requests among themselves and for background ones likewise:
  - a request may use any slot whose ring holds what it needs; no slot goes to a request while one
    that was added before it waits and could use that slot;
  - nobody waits while a slot is free that suits: short requests pass a long one that waits for a
    long ring, and borrow long rings that nobody else waits for;
  - the oldest prefilling request advances by one chunk in every prefill dispatch of its kind;
  - every decoding request that still needs tokens is in every decode dispatch;
  - no dispatch is planned for tokens that are already on their way, or in which nobody would pick.
From these follows that nothing starves: the slots a request could use are held by requests added
before it, and once it has one, only those admitted before it go before it.

Background requests give way to interactive ones.
  - They get the slots that no waiting interactive one could use, and count in the limits of their
    own queue only.
  - While an interactive request waits for want of a slot that a background one holds, that one is
    `in_the_way`: it is to be finished, and `admit` called again.
  - They prefill when no interactive request does, in dispatches of their own. While interactive
    ones run, each such prefill is followed by a rest of twice the time that it took, and so is the
    moment in which the first of them is admitted. Interactive prefills make the rest longer by the
    time that they take: so decoding takes half as long again, at most.
  - Decode dispatches they share: more rows neither slow one down nor change its tokens.
The interactive ones come first, so that background ones starve while those take everything.

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

from collections.abc import Mapping, Sequence
from math import inf

from tpuinfer.engine.job import DecodePlan, Job, Mask, PrefillPlan
from tpuinfer.engine.lane import Lane, shortage
from tpuinfer.engine.request import Phase
from tpuinfer.engine.slots import SlotPool
from tpuinfer.errors import RequestError
from tpuinfer.programs.slots import SlotLayout

_REST = 2.0
"""How long no background prefill begins after one, in the time that it took."""


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
        self._added = 0
        self._interactive, self._background = Lane(layout), Lane(layout)
        self._decoding: dict[int, Job] = {}
        # background prefills rest until then while interactive requests run; the last one's seconds
        self._resume = self._took = 0.0

    @property
    def waiting(self) -> int:
        """Requests that have no slot, of both kinds."""
        return self._interactive.waiting + self._background.waiting

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the prompts of those that wait."""
        return self._interactive.waiting_tokens + self._background.waiting_tokens

    @property
    def running(self) -> int:
        """Requests that hold a slot, of both kinds."""
        return self._pool.used

    @property
    def background_waiting(self) -> int:
        """Those of `waiting` that are background requests."""
        return self._background.waiting

    @property
    def background_jobs(self) -> list[Job]:
        """Those of `running` that are background requests."""
        return list(self._background.running.values())

    @property
    def ring_tokens(self) -> int:
        """Tokens in all rings, those that are being dispatched included."""
        running = (*self._interactive.running.values(), *self._background.running.values())
        return sum(min(job.written, self._layout.capacity_of(job.slot)) for job in running)

    def add(self, job: Job) -> None:
        """Put a job at the end of its line.

        Raises:
          QueueFullError: the free slots that would suit are spoken for, and `max_waiting` requests
            of its kind wait beyond those that have one to go to; or others wait, and their prompts
            and this one have more than `max_waiting_tokens` together. To an interactive request,
            a slot with a background one is free.
        """
        lane = self._lane_of(job)
        left = self._left_waiting(job)
        kind = "background requests" if lane is self._background else "requests"
        if left > self._max_waiting:
            raise QueueFullError(
                f"{len(lane.running)} {kind} are running and {lane.waiting} are waiting: "
                f"at most {self._max_waiting} may wait; try again later"
            )
        tokens, most = lane.waiting_tokens + len(job.prompt), self._max_waiting_tokens
        if most is not None and left and lane.waiting_tokens and tokens > most:
            raise QueueFullError(
                f"{lane.waiting} {kind} with {lane.waiting_tokens} prompt tokens are waiting, "
                f"and this one has {len(job.prompt)}: at most {most} tokens may wait; "
                "try again later"
            )
        lane.join(job)
        job.order = self._added
        self._added += 1

    def admit(self, now: float) -> list[Job]:
        """Give free slots to those who wait: the oldest first, the shortest ring that suits.

        Interactive requests first; background ones get what none of those could use.
        """
        admitted = []
        if not self._interactive.running:
            self._resume = max(self._resume, now + _REST * self._took)
        for lane in (self._interactive, self._background):
            while (found := lane.next_for(self._pool.free_in)) is not None:
                line, ring_class = found
                slot = self._pool.acquire(ring_class)
                assert slot is not None, f"class {ring_class} has no free slot"
                admitted.append(lane.admit(line, slot, now))
        return admitted

    def in_the_way(self) -> Job | None:
        """The background job that holds what an interactive one waits for; None if none does.

        Of those that the oldest who can be helped could use, a slot of the smallest class, and of
        those the job with the least work behind it, the youngest of several. To be asked when all
        that is free has been given out.
        """
        for line in self._interactive.heads():
            suits = {
                (ring_class, job.written, -job.order): job
                for job in self._background.running.values()
                if (ring_class := self._layout.class_of(job.slot)) >= line
            }
            if suits:
                return suits[min(suits)]
        return None

    def held(self, now: float) -> float:
        """Seconds for which the next prefill is held back, so that more may join it; else 0.

        Held is only a batch that is short of rows on some shard and led by a job that has had no
        chunk yet, until `wait` seconds after that one was admitted: no job is held for longer in
        all, and none once its prompt has begun.
        """
        jobs = self._next_to_prefill(now)
        if not self._wait or not jobs or jobs[0].prefilled:
            return 0.0
        left = jobs[0].admitted + self._wait - now
        return left if left > 0 and not self._gather(jobs)[1] else 0.0

    def prefilled(self, took: float, now: float, *, background: bool) -> None:
        """A prefill took `took` seconds, up to `now`."""
        if background:
            self._took, self._resume = took, now + _REST * took
        else:
            self._resume += took

    def plan_prefill(self, now: float) -> PrefillPlan | None:
        """The next chunk of the oldest prefilling job, and what can share its dispatch.

        In order of admission, every job whose next chunk has the same bucket joins while its data
        shard has rows left. In the order a, c, d, b, with one row a shard:

            shard 0   a: [8 @8] [3 @4]   then b: [8 @8]
            shard 1   c: [8 @8] [8 @8]
            shard 2   d: [2 @2]
            plans     a0 c0 | a1 | c1 b0 | d0

        and with two rows, b0 shares the first. None when nothing is to do, the batch is `held`, or
        background prefills rest.
        """
        if self.held(now):
            return None
        batch, _ = self._gather(self._next_to_prefill(now))
        if not batch:
            return None
        lane = self._lane_of(batch[0])
        plan = PrefillPlan([], {}, {}, {}, background=lane is self._background)
        if plan.background:
            self._resume = inf  # until it is `prefilled`
        for job in batch:
            work = job.next_work()
            plan.work.append(work)
            job.prefilled += 1
            if job.request.params.prompt_logprobs is not None:
                plan.scored[job.slot] = job
            if work.last:
                plan.rows[job.slot] = job
                lane.prefilling.remove(job)
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
        assert job.phase is not Phase.FINISHED, (
            f"request {job.request.request_id} has finished already"
        )
        self._lane_of(job).leave(job)
        if job.phase is not Phase.WAITING:
            self._pool.release(job.slot)
        if job.phase is Phase.DECODING:
            del self._decoding[job.slot]
        job.phase = Phase.FINISHED

    def _lane_of(self, job: Job) -> Lane:
        return self._background if job.request.background else self._interactive

    def _left_waiting(self, job: Job) -> int:
        """How many of its kind would wait for want of a slot if one more job was there."""
        free = [self._pool.free_in(ring_class) for ring_class in range(len(self._layout.counts))]
        before = self._interactive.wanted()
        if job.request.background:
            both = _sums(before, self._background.wanted(job))
            return shortage(both, free) - shortage(before, free)
        return shortage(self._interactive.wanted(job), _sums(free, self._background.held()))

    def _next_to_prefill(self, now: float) -> Sequence[Job]:
        """Those whose chunks may be in the next prefill, as admitted; all of one kind."""
        if self._interactive.prefilling:
            return self._interactive.prefilling
        if self._interactive.running and now < self._resume:
            return ()
        return self._background.prefilling

    def _gather(self, jobs: Sequence[Job]) -> tuple[list[Job], bool]:
        """Those of some jobs that share a prefill, and whether every data shard is full."""
        if not jobs:
            return [], False
        bucket = jobs[0].next_chunk.bucket
        room = [self._rows[bucket]] * self._layout.shards
        batch = []
        for job in jobs:
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


def _sums(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]
