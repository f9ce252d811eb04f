"""Ten thousand random jobs through the scheduler, with what it promises checked at every step."""

import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.engine.job import DecodePlan, Job, PrefillPlan
from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.scheduler import Scheduler
from tpuinfer.programs.buckets import cut
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.testing.constraint import FakeConstraint

BUCKETS = (2, 4, 8)
CAPACITIES = (16, 48, 128)
LONGEST = 6  # chunks of the longest prompt
MOST = 12  # tokens of the longest answer
BACKLOG = 100  # nobody comes while so many wait


@dataclass(frozen=True)
class Setting:
    """What a run is made of; `wait` is in steps, of which each takes one second.

    `background` is the part of the jobs that are background ones, `took` the time of a prefill.
    """

    layout: SlotLayout
    rows: dict[int, int]
    steps: int
    wait: float
    arrivals: float
    aborts: float
    constrained: float
    background: float = 0.0
    took: float = 0.0


class Load:
    """Random arrivals, ends and aborts on one scheduler, beside a model that knows no queues."""

    def __init__(self, chance: random.Random, setting: Setting) -> None:
        self.chance, self.setting, self.layout = chance, setting, setting.layout
        self.scheduler = Scheduler(
            setting.layout,
            rows=setting.rows,
            steps=setting.steps,
            max_waiting=10**6,
            wait=setting.wait,
        )
        self.clock = self.added = self.prefills = self.ended = self.preempted = 0
        self.behind = 0  # background prefills while an interactive job runs
        self.rest = 0.0  # there is none before
        self.took = 0.0
        self.waiting: list[Job] = []  # in the order added
        self.prefilling: list[Job] = []  # in the order admitted
        self.held: dict[int, Job] = {}
        self.unread: list[Job] = []  # constrained, and picked in the last step
        self.patience: dict[Job, int] = {}

    def arrive(self) -> None:
        size = self.chance.choice(
            [1, self.chance.randint(1, 8), self.chance.randint(1, 8 * LONGEST)]
        )
        limit = self.chance.randint(1, MOST)
        constraint = None
        if self.chance.random() < self.setting.constrained:
            constraint = FakeConstraint(range)
        background = self.chance.random() < self.setting.background
        job = Job(
            Request(str(self.added), (), constraint=constraint, background=background),
            (1,) * size,
            limit=limit,
            need=min(size + limit, self.layout.capacity),
            stop_ids=(),
            seed=0,
            chunks=cut(size, 8, BUCKETS),
        )
        self.line_up(job)
        self.added += 1

    def line_up(self, job: Job) -> None:
        """Background jobs may starve as long as there are others."""
        self.scheduler.add(job)
        if not job.request.background:
            self.patience[job] = self.clock + (1 + self.rivals(job)) * self.longest_stay()
        self.waiting.append(job)

    def rivals(self, job: Job) -> int:
        """How many of its kind hold, or will get before it, a slot that the job could use."""
        holders = [slot for slot in self.running() if self.layout.capacity_of(slot) >= job.need]
        return len(holders) + sum(not one.request.background for one in self.waiting)

    def running(self) -> dict[int, Job]:
        """Interactive jobs, by slot."""
        return {slot: job for slot, job in self.held.items() if not job.request.background}

    def longest_stay(self) -> int:
        """Steps that a slot is held at most: everybody's chunks, the wait, one's answer."""
        return self.layout.slots * LONGEST + int(self.setting.wait) + 2 * MOST + 2

    def step(self) -> None:
        self.clock += 1
        self.admit(alone=not self.running())
        before = {job: job.prefilled for job in self.prefilling}
        self.check_prefill(before, self.scheduler.plan_prefill(self.clock))
        needy = {
            slot: (job, job.limit - job.promised)
            for slot, job in self.held.items()
            if job.phase is Phase.DECODING and job.promised < job.limit
        }
        picked = self.check_decode(needy, self.scheduler.plan_decode())
        self.read_masks(picked)
        for job in list(self.held.values()):
            done = job.phase is Phase.DECODING and job.promised == job.limit
            if done or self.chance.random() < self.setting.aborts:
                self.end(job)
        if self.waiting and self.chance.random() < self.setting.aborts:
            self.end(self.chance.choice(self.waiting))
        scheduler = self.scheduler
        assert (scheduler.running, scheduler.waiting) == (len(self.held), len(self.waiting))
        assert len(scheduler.background_jobs) == len(self.held) - len(self.running())
        late = [job.order for job in self.patience if self.patience[job] < self.clock]
        assert not late, f"{late} starve"

    def end(self, job: Job) -> None:
        if job.phase is Phase.WAITING:
            self.waiting.remove(job)
        else:
            assert self.held.pop(job.slot) is job
        if job in self.prefilling:
            self.prefilling.remove(job)
        self.scheduler.finish(job)
        self.patience.pop(job, None)
        self.ended += 1

    def admit(self, *, alone: bool) -> None:
        """By the book, and again as long as somebody must make room."""
        if alone:
            self.rest = max(self.rest, self.clock + 2 * self.took)
        self.admit_by_the_book()
        while (victim := self.scheduler.in_the_way()) is not None:
            assert victim is self.victim()
            self.end(victim)
            self.ended -= 1
            self.preempted += 1
            fresh = replace(victim, phase=Phase.WAITING, prefilled=0, promised=0, mask=None)
            self.admit_by_the_book()
            self.line_up(fresh)
        assert self.victim() is None

    def victim(self) -> Job | None:
        """Whom the oldest interactive job that waits, and can be helped, should replace."""
        holders = [
            (self.layout.class_of(slot), holder.written, -holder.order)
            for slot, holder in self.held.items()
            if holder.request.background
        ]
        for job in self.waiting:
            if not job.request.background:
                suit = [one for one in holders if self.layout.capacities[one[0]] >= job.need]
                if suit:
                    order = -min(suit)[2]
                    return next(one for one in self.held.values() if one.order == order)
        return None

    def admit_by_the_book(self) -> None:
        """In the order added, each the shortest free ring that suits it; background ones last."""
        free = Counter(self.layout.class_of(slot) for slot in range(self.layout.slots))
        free.subtract(self.layout.class_of(slot) for slot in self.held)
        expected = []
        for job in sorted(self.waiting, key=lambda job: job.request.background):
            for ring_class, capacity in enumerate(self.layout.capacities):
                if free[ring_class] and capacity >= job.need:
                    free[ring_class] -= 1
                    expected.append((job, ring_class))
                    break
        admitted = self.scheduler.admit(self.clock)
        assert [(job, self.layout.class_of(job.slot)) for job in admitted] == expected
        for job in admitted:
            assert job.slot not in self.held, f"slot {job.slot} is given twice"
            assert job.need <= self.layout.capacity_of(job.slot)
            assert (job.phase, job.admitted) == (Phase.PREFILLING, self.clock)
            self.held[job.slot] = job
            if job.request.constraint:
                job.mask = np.array([job.order], np.int32)
            self.waiting.remove(job)
            self.prefilling.append(job)

    def check_prefill(self, before: dict[Job, int], plan: PrefillPlan | None) -> None:
        """The oldest advances, and with it whoever fits; nothing is held for long."""
        candidates = [job for job in self.prefilling if not job.request.background]
        if not candidates and not (self.running() and self.clock < self.rest):
            candidates = self.prefilling
        if not candidates:
            assert plan is None
            return
        first = candidates[0]
        bucket = first.chunks[before[first]].bucket
        room = Counter(dict.fromkeys(range(self.layout.shards), self.setting.rows[bucket]))
        batch = []
        for job in candidates:
            shard = self.layout.shard_of(job.slot)
            if job.chunks[before[job]].bucket == bucket and room[shard]:
                room[shard] -= 1
                batch.append(job)
        if plan is None:
            assert before[first] == 0
            assert self.clock < first.admitted + self.setting.wait
            assert room.total() > 0
            return
        young = before[first] == 0 and self.clock < first.admitted + self.setting.wait
        slots = self.layout.per_shard
        full = all(left == 0 or self.setting.rows[bucket] - left == slots for left in room.values())
        assert full or not young, "not held"
        assert [work.slot for work in plan.work] == [job.slot for job in batch]
        for job, work in zip(batch, plan.work, strict=True):
            chunk = job.chunks[before[job]]
            assert (work.start, work.bucket, len(work.tokens)) == (chunk.start, bucket, chunk.size)
            assert job.prefilled == before[job] + 1
            assert (job.slot in plan.rows) is work.last is (job.prefilled == len(job.chunks))
        self.prefilling = [job for job in self.prefilling if job.prefilled < len(job.chunks)]
        self.check_masks(plan.rows, plan.masks)
        self.prefills += 1
        self.check_kind(plan, batch)

    def check_kind(self, plan: PrefillPlan, batch: list[Job]) -> None:
        """One kind to a plan; then it is read, at once."""
        assert {job.request.background for job in batch} == {plan.background}
        took = self.setting.took * self.chance.random()
        self.scheduler.prefilled(took, self.clock, background=plan.background)
        if plan.background:
            self.took, self.rest = took, self.clock + 2 * took
            self.behind += bool(self.running())
        else:
            self.rest += took

    def check_decode(
        self, needy: dict[int, tuple[Job, int]], plan: DecodePlan | None
    ) -> dict[int, Job]:
        """All who need tokens, but for those without masks, and as many steps as one can use."""
        able = {slot: job for slot, (job, _) in needy.items() if job not in self.unread}
        if plan is None:
            assert not able
            return {}
        assert plan.rows == able
        most = max(needy[slot][1] for slot in able)
        guided = any(job.request.constraint for job, _ in needy.values())
        assert plan.steps == (1 if guided else min(self.setting.steps, most))
        assert plan.quotas.keys() == needy.keys()
        for slot, (job, left) in needy.items():
            assert plan.quotas[slot] == (min(left, plan.steps) if slot in able else 0)
            assert job.limit - job.promised == left - plan.quotas[slot]
        self.check_masks(plan.rows, plan.masks)
        return plan.rows

    def check_masks(self, rows: dict[int, Job], masks: dict[int, np.ndarray]) -> None:
        """Each job's own mask goes along when it picks, and only then."""
        guided = {slot: job.order for slot, job in rows.items() if job.request.constraint}
        assert {slot: int(mask[0]) for slot, mask in masks.items()} == guided
        self.unread += [rows[slot] for slot in guided]

    def read_masks(self, picked: dict[int, Job]) -> None:
        """As an engine: read all but the newest dispatch, or all where there was none."""
        newest = [job for job in self.unread if job in picked.values()]
        for job in self.unread:
            if job not in newest and job.phase is Phase.DECODING:
                job.mask = np.array([job.order], np.int32)
        self.unread = newest

    def run(self, jobs: int) -> None:
        owed = 0.0
        while self.added < jobs or self.scheduler.waiting or self.scheduler.running:
            owed += self.chance.random() * 2 * self.setting.arrivals
            while owed >= 1 and self.added < jobs and len(self.waiting) < BACKLOG:
                self.arrive()
                owed -= 1
            self.step()
        assert self.ended == jobs
        assert not any(map(len, (self.waiting, self.held, self.prefilling, self.patience)))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shards=st.sampled_from([1, 1, 2, 4]),
    per_shard=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rows=st.sampled_from([(1, 1, 1), (8, 4, 1), (2, 2, 2)]),
    steps=st.sampled_from([1, 1, 4]),
    wait=st.sampled_from([0, 0, 3]),
    arrivals=st.sampled_from([0.3, 1.0, 3.0, 100.0]),
    aborts=st.sampled_from([0.0, 0.02, 0.2]),
    constrained=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    background=st.sampled_from([0.0, 0.5, 0.9]),
    took=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_what_it_promises_holds_at_every_step(
    seed: int,
    shards: int,
    per_shard: list[int],
    rows: tuple[int, int, int],
    steps: int,
    wait: float,
    arrivals: float,
    aborts: float,
    constrained: float,
    background: float,
    took: float,
) -> None:
    counts = tuple(count * shards for count in per_shard)
    setting = Setting(
        SlotLayout(counts, CAPACITIES[-len(counts) :], shards),
        dict(zip(BUCKETS, rows, strict=True)),
        steps,
        wait,
        arrivals,
        aborts,
        constrained,
        background,
        took,
    )
    Load(random.Random(seed), setting).run(jobs=100)


def test_ten_thousand_jobs() -> None:
    setting = Setting(
        SlotLayout((12, 6, 4), CAPACITIES, 2),
        {2: 4, 4: 2, 8: 1},
        steps=2,
        wait=1.5,
        arrivals=2.0,
        aborts=0.005,
        constrained=0.2,
    )
    load = Load(random.Random(0), setting)
    load.run(jobs=10_000)
    assert load.prefills > 5000


def test_ten_thousand_jobs_of_both_kinds() -> None:
    setting = Setting(
        SlotLayout((12, 6, 4), CAPACITIES, 2),
        {2: 4, 4: 2, 8: 1},
        steps=2,
        wait=1.5,
        arrivals=2.0,
        aborts=0.005,
        constrained=0.2,
        background=0.6,
        took=2.0,
    )
    load = Load(random.Random(0), setting)
    load.run(jobs=10_000)
    assert load.preempted > 1000
    assert load.behind > 500
