"""Background jobs beside interactive ones: plans, drawn by hand."""

from typing import Any

import pytest

from tpuinfer.engine.job import Job
from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.scheduler import QueueFullError, Scheduler
from tpuinfer.programs.buckets import cut
from tpuinfer.programs.slots import SlotLayout


def job(name: str, prompt: int = 3, limit: int = 5, need: int | None = None) -> Job:
    """A background job if its name is in capitals. Chunks of 8, tails at 2, 4 or 8."""
    return Job(
        Request(name, range(prompt), background=name.isupper()),
        tuple(range(prompt)),
        limit=limit,
        need=prompt + limit if need is None else need,
        stop_ids=(0,),
        seed=7,
        chunks=cut(prompt, 8, (2, 4, 8)),
    )


def scheduler(slots: int | tuple[int, ...] = 2, *, rows: int = 2, **settings: Any) -> Scheduler:
    """Slots of one class of 64 tokens, or classes of 10, 100, ... tokens."""
    counts, capacities = (slots,), (64,)
    if isinstance(slots, tuple):
        counts, capacities = slots, tuple(10 ** (place + 1) for place in range(len(slots)))
    return Scheduler(
        SlotLayout(counts, capacities, 1),
        rows={2: rows, 4: rows, 8: rows},
        **{"max_waiting": 100} | settings,
    )


def admitted(line: Scheduler, *jobs: Job, now: float = 0) -> list[str]:
    for one in jobs:
        line.add(one)
    return [one.request.request_id for one in line.admit(now)]


def ends(line: Scheduler) -> str | None:
    """Who is in the way."""
    one = line.in_the_way()
    return one and one.request.request_id


def slots_of(line: Scheduler, now: float = 0) -> list[int]:
    """The slots of the next prefill."""
    plan = line.plan_prefill(now)
    return [work.slot for work in plan.work] if plan else []


def test_interactive_jobs_are_admitted_first() -> None:
    line = scheduler(slots=3)
    assert admitted(line, job("A"), job("B"), job("a"), job("b")) == ["a", "b", "A"]
    assert (line.running, line.waiting, line.background_waiting) == (3, 1, 1)
    assert [one.request.request_id for one in line.background_jobs] == ["A"]
    assert line.in_the_way() is None


def test_a_background_job_gets_what_nobody_waiting_could_use() -> None:
    line = scheduler((1, 1))
    assert admitted(line, job("long", need=50)) == ["long"]
    assert admitted(line, job("A", need=5), job("too long", need=50)) == ["A"]
    assert ends(line) is None, "a slot of 10 is no help"


def test_the_one_with_the_least_work_behind_it_goes() -> None:
    line = scheduler(slots=3)
    begun, old, young = job("BEGUN"), job("OLD"), job("YOUNG")
    admitted(line, begun)
    line.plan_prefill(0)
    admitted(line, old, young)
    assert ends(line) is None, "nobody waits"
    assert admitted(line, job("a"), job("b"), job("c")) == []
    for victim, heir in ((young, "a"), (old, "b"), (begun, "c")):
        assert line.in_the_way() is victim
        slot = victim.slot
        line.finish(victim)
        (one,) = line.admit(1)
        assert (one.request.request_id, one.slot) == (heir, slot)
    assert ends(line) is None
    assert (line.running, line.waiting) == (3, 0)


def test_a_slot_of_the_smallest_class_that_helps() -> None:
    line = scheduler((1, 1, 1))  # of 10, 100 and 1000
    short, middle, long = job("SHORT"), job("MIDDLE", need=50), job("LONG", need=500)
    admitted(line, short, middle)
    while line.plan_prefill(0):
        pass
    admitted(line, long)
    admitted(line, job("a", need=50))
    assert line.in_the_way() is middle, "LONG has done less, and SHORT's ring is too short"


def test_the_oldest_who_can_be_helped_comes_first() -> None:
    line = scheduler((1, 1))
    admitted(line, job("long", need=50), job("SHORT", need=5))
    admitted(line, job("longer", need=60), job("short", need=5))
    victim = line.in_the_way()
    assert victim is not None
    line.finish(victim)
    assert admitted(line) == ["short"]


def test_the_queues_are_bounded_apart() -> None:
    line = scheduler(slots=1, max_waiting=1)
    admitted(line, job("A"))
    line.add(job("B"))
    with pytest.raises(QueueFullError, match="1 background requests are running and 1 are waiting"):
        line.add(job("C"))
    line.add(job("a", prompt=50))  # the slot that A holds is its
    line.add(job("b", prompt=3))
    with pytest.raises(QueueFullError, match="0 requests are running and 2 are waiting: at most 1"):
        line.add(job("c"))
    assert line.waiting_tokens == 56


def test_those_who_wait_before_it_do_not_count_in_a_background_job_s_queue() -> None:
    line = scheduler(slots=2, max_waiting=1)
    for one in (job("a"), job("b"), job("c")):
        line.add(one)
    line.add(job("A"))
    with pytest.raises(QueueFullError, match="0 background requests are running and 1 are waiting"):
        line.add(job("B"))


def test_the_tokens_that_may_wait_are_counted_apart() -> None:
    line = scheduler(slots=1, max_waiting_tokens=10)
    admitted(line, job("A"))
    line.add(job("B", prompt=30))
    with pytest.raises(QueueFullError, match="1 background requests with 30 prompt tokens"):
        line.add(job("C", prompt=1))
    for one in (job("a", prompt=5), job("b", prompt=5)):
        line.add(one)
    with pytest.raises(QueueFullError, match="2 requests with 10 prompt tokens"):
        line.add(job("c", prompt=1))


def test_interactive_chunks_go_first_and_alone() -> None:
    line = scheduler(slots=4)
    admitted(line, job("A", prompt=20), job("B"))
    assert slots_of(line) == [0]
    admitted(line, job("a", prompt=11), job("b"))
    assert [slots_of(line) for _ in range(2)] == [[2], [2, 3]]  # b, of 3, goes with a's tail
    assert slots_of(line) == [], "the last background prefill is on its way"
    line.prefilled(1, now=10, background=True)
    assert slots_of(line, now=12) == [0]


def test_background_prefills_rest_while_an_interactive_job_runs() -> None:
    line = scheduler(slots=2)
    one = job("a")
    admitted(line, one, job("A", prompt=40))
    assert slots_of(line) == [0]
    assert slots_of(line) == [1]
    assert slots_of(line, now=10**6) == [], "how long it takes is not known yet"
    line.prefilled(4, now=10, background=True)
    assert (slots_of(line, now=17.9), slots_of(line, now=18)) == ([], [1])
    line.prefilled(4, now=22, background=True)
    assert slots_of(line, now=23) == []
    line.finish(one)
    assert [slots_of(line, now=23) for _ in range(3)] == [[1], [1], [1]]


def test_what_interactive_prefills_take_is_no_rest() -> None:
    line = scheduler(slots=3)
    admitted(line, job("a"), job("A", prompt=40))
    slots_of(line)
    slots_of(line)
    line.prefilled(4, now=10, background=True)
    line.prefilled(3, now=14, background=False)
    assert (slots_of(line, now=20.9), slots_of(line, now=21)) == ([], [1])


def test_the_first_interactive_job_is_not_disturbed_at_once() -> None:
    line = scheduler(slots=2)
    admitted(line, job("A", prompt=40))
    slots_of(line)
    line.prefilled(4, now=10, background=True)
    admitted(line, job("a"), now=50)
    assert slots_of(line, now=50) == [1]
    assert (slots_of(line, now=57), slots_of(line, now=58)) == ([], [0])


def test_a_background_prefill_is_held_for_others_like_any() -> None:
    line = scheduler(slots=3, wait=5)
    admitted(line, job("A"))
    assert (line.held(1), slots_of(line, now=1)) == (4, [])
    admitted(line, job("B"), now=2)
    assert slots_of(line, now=2) == [0, 1]
    admitted(line, job("C"), now=3)
    assert slots_of(line, now=8) == [2]


def test_decodes_are_shared() -> None:
    line = scheduler(slots=2)
    line.add(job("a"))
    line.add(job("A"))
    line.admit(0)
    line.plan_prefill(0)
    line.plan_prefill(0)
    plan = line.plan_decode()
    assert plan is not None
    assert [one.request.request_id for one in plan.rows.values()] == ["a", "A"]


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.PREFILLING, Phase.DECODING])
def test_finish_in_any_phase(phase: Phase) -> None:
    line, one = scheduler(slots=1), job("A", prompt=9)
    line.add(one)
    if phase is not Phase.WAITING:
        line.admit(0)
        line.plan_prefill(0)
    if phase is Phase.DECODING:
        line.plan_prefill(0)
    assert one.phase is phase
    line.finish(one)
    assert (line.running, line.waiting, line.waiting_tokens, line.ring_tokens) == (0, 0, 0, 0)
    assert line.plan_prefill(0) is None
    assert line.plan_decode() is None
