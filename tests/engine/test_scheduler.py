"""Plans, drawn by hand."""

import pytest

from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.scheduler import Job, PrefillPlan, QueueFullError, Scheduler
from tpuinfer.programs.buckets import cut


def job(name: str, prompt: int = 3, limit: int = 5) -> Job:
    """A job whose prompt is 0, 1, 2, ...; chunks of 8, tails at 2, 4 or 8."""
    return Job(
        Request(name, range(prompt)),
        tuple(range(prompt)),
        limit=limit,
        stop_ids=(0,),
        seed=7,
        chunks=cut(prompt, 8, (2, 4, 8)),
    )


def scheduler(slots: int = 2, shards: int = 1, steps: int = 1, max_waiting: int = 100) -> Scheduler:
    return Scheduler(slots, shards, steps=steps, max_waiting=max_waiting)


def names(jobs: list[Job]) -> list[str]:
    return [one.request.request_id for one in jobs]


def drawn(plan: PrefillPlan | None) -> list[tuple[int, int, int]]:
    """(slot, start, bucket) of each work of a plan."""
    assert plan is not None
    return [(work.slot, work.start, work.bucket) for work in plan.work]


def prefilled(one: Scheduler) -> None:
    one.admit()
    while one.plan_prefill():
        pass


def test_admits_in_order_into_free_slots() -> None:
    line = scheduler(slots=2)
    jobs = [job(name) for name in "abcd"]
    for one in jobs:
        line.add(one)
    assert names(line.admit()) == ["a", "b"]
    assert (line.running, line.waiting) == (2, 2)
    assert line.admit() == []
    line.finish(jobs[0])
    assert names(line.admit()) == ["c"]
    assert jobs[2].slot == jobs[0].slot == 0


def test_a_prompt_goes_in_chunk_by_chunk() -> None:
    line, one = scheduler(), job("a", prompt=19)
    line.add(one)
    line.admit()
    plans = [line.plan_prefill() for _ in range(4)]
    assert plans.pop() is None
    works = [plan.work[0] for plan in plans if plan]
    assert [tuple(work.tokens) for work in works] == [
        tuple(range(8)),
        tuple(range(8, 16)),
        (16, 17, 18),
    ]
    assert [(work.start, work.bucket, work.last) for work in works] == [
        (0, 8, False),
        (8, 8, False),
        (16, 4, True),
    ]
    assert [(work.limit, work.stop_ids, work.seed) for work in works] == [(5, (0,), 7)] * 3
    assert [plan.rows for plan in plans if plan] == [{}, {}, {0: one}]
    assert one.phase is Phase.DECODING


def test_shards_share_a_dispatch_when_the_bucket_is_the_same() -> None:
    """The example of plan_prefill: a c d b arrive, so that b is behind a on shard 0."""
    line = scheduler(slots=6, shards=3)
    for one in (job("a", 11), job("c", 16), job("d", 2), job("b", 8)):
        line.add(one)
    line.admit()
    assert drawn(line.plan_prefill()) == [(0, 0, 8), (2, 0, 8)]  # a0 c0
    assert drawn(line.plan_prefill()) == [(0, 8, 4)]  # a1
    assert drawn(line.plan_prefill()) == [(2, 8, 8), (1, 0, 8)]  # c1, and b0 joins
    assert drawn(line.plan_prefill()) == [(4, 0, 2)]  # d0
    assert line.plan_prefill() is None


def test_one_shard_takes_one_chunk_at_a_time() -> None:
    line = scheduler(slots=3)
    for name in "abc":
        line.add(job(name, prompt=8))
    line.admit()
    assert [drawn(line.plan_prefill()) for _ in range(3)] == [
        [(0, 0, 8)],
        [(1, 0, 8)],
        [(2, 0, 8)],
    ]


def test_decode_takes_all_rows_that_still_need_tokens() -> None:
    line = scheduler(slots=3, steps=4)
    short, long, single = job("a", limit=3), job("b", limit=10), job("c", limit=1)
    for one in (short, long, single):
        line.add(one)
    prefilled(line)
    plans = [line.plan_decode() for _ in range(4)]
    assert plans.pop() is None
    assert [(plan.steps, list(plan.rows.values())) for plan in plans if plan] == [
        (4, [short, long]),
        (4, [long]),
        (1, [long]),
    ]
    assert (short.promised, long.promised, single.promised) == (3, 10, 1)


def test_a_row_decodes_in_the_step_that_ends_its_prompt() -> None:
    line, one = scheduler(), job("a", prompt=9)
    line.add(one)
    line.admit()
    line.plan_prefill()
    assert line.plan_decode() is None
    line.plan_prefill()
    plan = line.plan_decode()
    assert plan is not None
    assert plan.rows == {0: one}


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILLING, Phase.DECODING])
def test_finish_in_any_phase_frees_what_was_held(phase: Phase) -> None:
    line, one, other = scheduler(slots=1), job("a", prompt=9), job("b", prompt=2)
    line.add(one)
    if phase is not Phase.WAITING:
        line.admit()
        line.plan_prefill()
    if phase is Phase.DECODING:
        line.plan_prefill()
    line.add(other)
    assert one.phase is phase
    line.finish(one)
    assert one.phase is Phase.FINISHED
    assert line.running == 0
    assert line.admit() == [other]
    assert drawn(line.plan_prefill()) == [(0, 0, 2)]
    plan = line.plan_decode()
    assert plan is not None
    assert plan.rows == {0: other}
    with pytest.raises(AssertionError, match="request a has finished already"):
        line.finish(one)


def test_the_queue_is_bounded_beyond_the_free_slots() -> None:
    line = scheduler(slots=2, max_waiting=1)
    for name in "abc":
        line.add(job(name))
    with pytest.raises(
        QueueFullError, match=r"0 requests are running and 3 are waiting.*at most 1"
    ):
        line.add(job("d"))
    line.admit()
    with pytest.raises(QueueFullError, match=r"2 requests are running and 1 are waiting"):
        line.add(job("d"))


def test_none_may_wait() -> None:
    line = scheduler(slots=1, max_waiting=0)
    line.add(job("a"))
    with pytest.raises(QueueFullError):
        line.add(job("b"))
