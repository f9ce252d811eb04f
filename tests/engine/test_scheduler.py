"""Plans, drawn by hand."""

from typing import Any

import numpy as np
import pytest

from tpuinfer.engine.job import Job, PrefillPlan
from tpuinfer.engine.request import Phase, Request, SamplingParams
from tpuinfer.engine.scheduler import QueueFullError, Scheduler
from tpuinfer.programs.buckets import cut
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.testing.constraint import FakeConstraint


def job(name: str, prompt: int = 3, limit: int = 5, need: int | None = None) -> Job:
    """A job whose prompt is 0, 1, 2, ...; chunks of 8, tails at 2, 4 or 8."""
    return Job(
        Request(name, range(prompt)),
        tuple(range(prompt)),
        limit=limit,
        need=prompt + limit if need is None else need,
        stop_ids=(0,),
        seed=7,
        chunks=cut(prompt, 8, (2, 4, 8)),
    )


def scheduler(
    slots: int | tuple[int, ...] = 2, *, shards: int = 1, rows: int = 1, **settings: Any
) -> Scheduler:
    """Slots of one class of 64 tokens, or classes of 10, 100, ... tokens."""
    counts, capacities = (slots,), (64,)
    if isinstance(slots, tuple):
        counts, capacities = slots, tuple(10 ** (place + 1) for place in range(len(slots)))
    return Scheduler(
        SlotLayout(counts, capacities, shards),
        rows={2: rows, 4: rows, 8: rows},
        **{"max_waiting": 100} | settings,
    )


def names(jobs: list[Job]) -> list[str]:
    return [one.request.request_id for one in jobs]


def drawn(plan: PrefillPlan | None) -> list[tuple[int, int, int]]:
    """(slot, start, bucket) of each work of a plan."""
    assert plan is not None
    return [(work.slot, work.start, work.bucket) for work in plan.work]


def prefilled(one: Scheduler) -> None:
    one.admit(0)
    while one.plan_prefill(0):
        pass


def test_admits_in_order_into_free_slots() -> None:
    line = scheduler(slots=2)
    jobs = [job(name) for name in "abcd"]
    for one in jobs:
        line.add(one)
    assert names(line.admit(0)) == ["a", "b"]
    assert (line.running, line.waiting) == (2, 2)
    assert line.admit(0) == []
    line.finish(jobs[0])
    assert names(line.admit(0)) == ["c"]
    assert jobs[2].slot == jobs[0].slot == 0


def test_a_prompt_goes_in_chunk_by_chunk() -> None:
    line, one = scheduler(), job("a", prompt=19)
    line.add(one)
    line.admit(0)
    plans = [line.plan_prefill(0) for _ in range(4)]
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
    line.admit(0)
    assert drawn(line.plan_prefill(0)) == [(0, 0, 8), (2, 0, 8)]  # a0 c0
    assert drawn(line.plan_prefill(0)) == [(0, 8, 4)]  # a1
    assert drawn(line.plan_prefill(0)) == [(2, 8, 8), (1, 0, 8)]  # c1, and b0 joins
    assert drawn(line.plan_prefill(0)) == [(4, 0, 2)]  # d0
    assert line.plan_prefill(0) is None


def test_with_more_rows_a_shard_those_behind_join_too() -> None:
    """The same four: b need not wait behind a."""
    line = scheduler(slots=6, shards=3, rows=2)
    for one in (job("a", 11), job("c", 16), job("d", 2), job("b", 8)):
        line.add(one)
    line.admit(0)
    assert drawn(line.plan_prefill(0)) == [(0, 0, 8), (2, 0, 8), (1, 0, 8)]  # a0 c0 b0
    assert drawn(line.plan_prefill(0)) == [(0, 8, 4)]  # a1
    assert drawn(line.plan_prefill(0)) == [(2, 8, 8)]  # c1
    assert drawn(line.plan_prefill(0)) == [(4, 0, 2)]  # d0


def test_rows_are_taken_in_order_of_admission_and_by_bucket() -> None:
    line = Scheduler(SlotLayout((6,), (64,)), rows={2: 1, 4: 2, 8: 3}, max_waiting=100)
    for one in (job("a", 4), job("b", 2), job("c", 3), job("d", 4), job("e", 1), job("f", 20)):
        line.add(one)
    line.admit(0)
    assert drawn(line.plan_prefill(0)) == [(0, 0, 4), (2, 0, 4)]  # a c; d is one too many
    assert drawn(line.plan_prefill(0)) == [(1, 0, 2)]  # b; one row is all there is for e
    assert drawn(line.plan_prefill(0)) == [(3, 0, 4)]  # d
    assert drawn(line.plan_prefill(0)) == [(4, 0, 2)]  # e
    assert [drawn(line.plan_prefill(0)) for _ in range(3)] == [  # f, one chunk at a time
        [(5, 0, 8)],
        [(5, 8, 8)],
        [(5, 16, 4)],
    ]


def test_one_shard_takes_one_chunk_at_a_time() -> None:
    line = scheduler(slots=3)
    for name in "abc":
        line.add(job(name, prompt=8))
    line.admit(0)
    assert [drawn(line.plan_prefill(0)) for _ in range(3)] == [
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
    line.admit(0)
    line.plan_prefill(0)
    assert line.plan_decode() is None
    line.plan_prefill(0)
    plan = line.plan_decode()
    assert plan is not None
    assert plan.rows == {0: one}


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILLING, Phase.DECODING])
def test_finish_in_any_phase_frees_what_was_held(phase: Phase) -> None:
    line, one, other = scheduler(slots=1), job("a", prompt=9), job("b", prompt=2)
    line.add(one)
    if phase is not Phase.WAITING:
        line.admit(0)
        line.plan_prefill(0)
    if phase is Phase.DECODING:
        line.plan_prefill(0)
    line.add(other)
    assert one.phase is phase
    line.finish(one)
    assert one.phase is Phase.FINISHED
    assert line.running == 0
    assert line.admit(0) == [other]
    assert drawn(line.plan_prefill(0)) == [(0, 0, 2)]
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
    line.admit(0)
    with pytest.raises(QueueFullError, match=r"2 requests are running and 1 are waiting"):
        line.add(job("d"))


def test_none_may_wait() -> None:
    line = scheduler(slots=1, max_waiting=0)
    line.add(job("a"))
    with pytest.raises(QueueFullError):
        line.add(job("b"))


def needing(*needs: int) -> list[Job]:
    """Jobs named 0, 1, ... that need so much."""
    return [job(str(place), need=need) for place, need in enumerate(needs)]


def placed(line: Scheduler, *jobs: Job) -> list[tuple[str, int]]:
    """(name, slot) as admitted, once the jobs have been added."""
    for one in jobs:
        line.add(one)
    return [(one.request.request_id, one.slot) for one in line.admit(0)]


def test_the_shortest_ring_that_suits() -> None:
    line = scheduler((2, 1, 1))  # slots 0 1 | 2 | 3
    assert placed(line, *needing(11, 10, 101, 9)) == [
        ("0", 2),
        ("1", 0),
        ("2", 3),
        ("3", 1),
    ]


def test_short_requests_borrow_long_rings_that_nobody_waits_for() -> None:
    line = scheduler((1, 1, 1))
    assert placed(line, *needing(5, 5, 5, 5)) == [("0", 0), ("1", 1), ("2", 2)]


def test_short_requests_pass_a_long_one_that_waits_for_a_long_ring() -> None:
    line = scheduler((2, 1))
    first = placed(line, *needing(50, 50, 5, 5))
    assert first == [("0", 2), ("2", 0), ("3", 1)]
    assert (line.running, line.waiting) == (3, 1)


def test_a_slot_goes_to_the_oldest_that_it_suits() -> None:
    line = scheduler((1, 1))
    jobs = needing(50, 5, 50, 5, 5)
    assert placed(line, *jobs) == [("0", 1), ("1", 0)]
    line.finish(jobs[0])
    assert placed(line) == [("2", 1)]  # 3 is younger
    line.finish(jobs[2])
    assert placed(line) == [("3", 1)]  # nobody older could use it
    line.finish(jobs[1])
    assert placed(line, job("long", need=50)) == [("4", 0)]
    line.finish(jobs[3])
    assert placed(line, job("short", need=5)) == [("long", 1)]


def test_more_than_any_ring_holds_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="needs 101 of 100"):
        scheduler((1, 1)).add(job("a", need=101))


def test_only_those_without_a_slot_to_go_to_count_as_waiting() -> None:
    line = scheduler((2, 1), max_waiting=1)
    long = needing(50, 50, 50)
    line.add(long[0])  # the long slot is spoken for
    line.add(long[1])  # waits
    with pytest.raises(QueueFullError, match=r"0 requests are running and 2 are waiting"):
        line.add(long[2])
    line.add(job("short", need=5))  # two short slots are free
    line.add(job("short too", need=5))
    with pytest.raises(QueueFullError):
        line.add(job("one too many", need=5))
    assert names(line.admit(0)) == ["0", "short", "short too"]
    line.finish(long[1])
    line.add(job("in its place", need=5))
    with pytest.raises(QueueFullError, match="3 requests are running and 1 are waiting"):
        line.add(long[2])


def test_a_batch_that_is_not_full_is_held_back_for_a_while() -> None:
    line = scheduler(slots=4, rows=2, wait=5)
    line.add(job("a", limit=1))
    line.admit(now=10)
    assert (line.held(10), line.held(13.5), line.held(15)) == (5, 1.5, 0)
    assert line.plan_prefill(14.9) is None
    line.add(job("b", limit=1))
    line.admit(now=14)
    assert line.held(14) == 0, "two rows are all there are"
    assert drawn(line.plan_prefill(14)) == [(0, 0, 4), (1, 0, 4)]
    line.add(job("c", limit=1))
    line.admit(now=20)
    assert line.plan_prefill(24) is None
    assert drawn(line.plan_prefill(25)) == [(2, 0, 4)]
    assert line.held(25) == 0, "nobody is left"


def test_full_means_on_every_shard() -> None:
    line = scheduler(slots=4, shards=2, rows=1, wait=5)
    line.add(job("a"))
    line.admit(now=0)
    assert line.plan_prefill(0) is None
    line.add(job("b"))
    line.admit(now=1)
    assert drawn(line.plan_prefill(1)) == [(0, 0, 4), (2, 0, 4)]


def test_all_the_slots_there_are_are_a_full_batch() -> None:
    line = scheduler(slots=1, rows=8, wait=5)
    line.add(job("a"))
    line.admit(now=0)
    assert drawn(line.plan_prefill(0)) == [(0, 0, 4)]


def test_others_of_another_bucket_do_not_fill_a_batch() -> None:
    line = scheduler(slots=3, rows=2, wait=5)
    for one in (job("a", 8), job("b", 2), job("c", 2)):
        line.add(one)
    line.admit(now=0)
    assert line.plan_prefill(4) is None
    assert drawn(line.plan_prefill(5)) == [(0, 0, 8)]
    assert drawn(line.plan_prefill(5)) == [(1, 0, 2), (2, 0, 2)]


def test_a_prompt_that_has_begun_is_not_held() -> None:
    line = scheduler(slots=4, rows=2, wait=5)
    line.add(job("a", 20))
    line.admit(now=0)
    assert drawn(line.plan_prefill(5)) == [(0, 0, 8)]
    line.add(job("b", 8))
    line.add(job("c", 2))
    line.admit(now=5)
    assert drawn(line.plan_prefill(5)) == [(0, 8, 8), (1, 0, 8)]
    assert drawn(line.plan_prefill(5)) == [(0, 16, 4)]
    assert line.plan_prefill(5) is None  # c leads, and is new
    assert line.held(7) == 3


def test_decode_goes_on_while_a_prefill_is_held() -> None:
    line = scheduler(slots=4, rows=2, wait=5)
    line.add(job("a"))
    line.admit(now=0)
    line.plan_prefill(5)
    line.add(job("b"))
    line.admit(now=6)
    assert line.plan_prefill(6) is None
    plan = line.plan_decode()
    assert plan is not None
    assert names(list(plan.rows.values())) == ["a"]


def constrained(name: str, prompt: int = 3, limit: int = 5) -> Job:
    one = job(name, prompt, limit)
    one.request.constraint = FakeConstraint(range)
    one.mask = mask(0)
    return one


def mask(number: int) -> np.ndarray:
    return np.array([number], np.int32)


def test_the_example_of_a_constrained_row() -> None:
    """The one in the scheduler's docstring: a picks every second dispatch, b in each."""
    line = scheduler(steps=4, rows=2)
    a, b = constrained("a", limit=9), job("b", limit=9)
    line.add(a)
    line.add(b)
    line.admit(0)
    plan = line.plan_prefill(0)
    assert plan is not None
    assert [work.constrained for work in plan.work] == [True, False]
    assert (plan.masks, a.mask) == ({0: mask(0)}, None)
    decodes = []
    for number in range(1, 6):
        decodes.append(line.plan_decode())
        if number % 2:  # its last token is read
            a.mask = mask(number)
    line.finish(a)
    decodes.append(line.plan_decode())
    assert [(plan.steps, plan.quotas) for plan in decodes if plan] == [
        (1, {0: 0, 1: 1}),
        (1, {0: 1, 1: 1}),
        (1, {0: 0, 1: 1}),
        (1, {0: 1, 1: 1}),
        (1, {0: 0, 1: 1}),
        (3, {1: 3}),
    ]
    assert [plan.masks for plan in decodes if plan] == [{}, {0: mask(1)}, {}, {0: mask(3)}, {}, {}]
    assert [0 in plan.rows for plan in decodes if plan] == [False, True, False, True, False, False]


def test_nothing_is_dispatched_while_all_wait_for_masks() -> None:
    line, one = scheduler(steps=4), constrained("a", limit=3)
    line.add(one)
    prefilled(line)
    assert line.plan_decode() is None
    one.mask = mask(1)
    plan = line.plan_decode()
    assert plan is not None
    assert (plan.steps, plan.quotas, plan.rows) == (1, {0: 1}, {0: one})
    assert line.plan_decode() is None


def test_one_that_has_all_its_tokens_on_the_way_holds_nobody_back() -> None:
    line = scheduler(steps=4, rows=2)
    line.add(constrained("a", limit=1))
    line.add(job("b", limit=9))
    prefilled(line)
    plan = line.plan_decode()
    assert plan is not None
    assert (plan.steps, plan.quotas) == (4, {1: 4})


def test_a_chunk_says_what_follows_it() -> None:
    line, one = scheduler(), job("a", prompt=11)
    line.add(one)
    line.admit(0)
    plans = [line.plan_prefill(0) for _ in range(2)]
    assert [plan.work[0].following for plan in plans if plan] == [8, -1]
    assert [plan.scored for plan in plans if plan] == [{}, {}]


def test_chunks_of_a_job_that_asked_are_scored() -> None:
    line = scheduler()
    one = Job(
        Request("a", (), SamplingParams(prompt_logprobs=0)),
        tuple(range(11)),
        limit=1,
        need=12,
        stop_ids=(),
        seed=0,
        chunks=cut(11, 8, (2, 4, 8)),
    )
    line.add(one)
    line.admit(0)
    plans = [line.plan_prefill(0) for _ in range(2)]
    assert [plan.scored for plan in plans if plan] == [{0: one}, {0: one}]


def test_the_queue_is_bounded_by_tokens_too() -> None:
    line = scheduler(slots=1, max_waiting_tokens=10)
    line.add(job("runs", prompt=30))
    line.admit(0)
    line.add(job("first", prompt=12))
    with pytest.raises(
        QueueFullError,
        match=r"1 requests with 12 prompt tokens are waiting, and this one has 1: at most 10",
    ):
        line.add(job("no", prompt=1))
    assert (line.waiting, line.waiting_tokens) == (1, 12)


def test_tokens_that_may_wait_are_those_of_all_that_wait() -> None:
    line = scheduler(slots=1, max_waiting_tokens=10)
    waiting = [job(name, prompt=5) for name in "abc"]
    for one in waiting:  # one of them has a slot to go to, but all of them wait
        if one is waiting[2]:
            with pytest.raises(QueueFullError, match="2 requests with 10 prompt tokens"):
                line.add(one)
        else:
            line.add(one)
    line.admit(0)
    assert line.waiting_tokens == 5
    line.add(waiting[2])
    line.finish(waiting[1])
    assert line.waiting_tokens == 5


def test_a_free_slot_takes_any_prompt() -> None:
    line = scheduler(slots=3, max_waiting_tokens=10)
    for name in "abc":
        line.add(job(name, prompt=30))
    assert line.waiting_tokens == 90
    assert names(line.admit(0)) == ["a", "b", "c"]


def test_tokens_in_the_rings() -> None:
    line = scheduler((1, 1), steps=4)  # of 10 and 100 tokens
    short, long = job("short", prompt=3, limit=7), job("long", prompt=12, limit=80, need=92)
    line.add(short)
    line.add(long)
    line.admit(0)
    assert line.ring_tokens == 0
    line.plan_prefill(0)
    assert line.ring_tokens == 4  # with its first token
    line.plan_prefill(0)
    assert line.ring_tokens == 12
    line.plan_decode()
    assert line.ring_tokens == 16
    line.finish(short)
    assert line.ring_tokens == 8


def test_a_ring_that_rolls_holds_no_more_than_it_can() -> None:
    line, one = scheduler((1,)), job("a", prompt=30, need=10)
    line.add(one)
    prefilled(line)
    assert line.ring_tokens == 10
