"""The loop of a batch, on an answerer by hand."""

import asyncio
import dataclasses
import json
import time

import pytest
from answering import ByHand, Recorded, task, tasks

from tpuinfer.errors import TpuinferError
from tpuinfer.offline.run import Marks, Pace, run
from tpuinfer.offline.task import BatchError, LineError, Task

FAST = Pace(backoff=(0.001, 0.001), grace_seconds=5)
MARKS = Marks(seed=1, created=1000)


def ran(given, recorder, answerer, pace=FAST, stop_when=None, **more):
    """The tally of one run; `stop_when(answerer)` is looked at each time something is asked."""

    async def main():
        stop = asyncio.Event()
        if stop_when is not None:
            answerer.on_ask = lambda _: stop.set() if stop_when(answerer) else None
        return await run(given, recorder, answerer, MARKS, stop=stop, pace=pace, **more)

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_every_line_is_answered_once_and_the_width_is_kept():
    recorder, answerer = Recorded(), ByHand(width=5)
    tally = ran(tasks(500), recorder, answerer)
    assert (tally.answered, tally.failed, tally.passed) == (500, 0, 0)
    assert (tally.prompt_tokens, tally.completion_tokens) == (1000, 1500)
    assert sorted(position for position, *_ in recorder.lines) == list(range(500))
    assert set(answerer.asked.values()) == {1}
    assert answerer.most == 5


def test_what_is_done_is_not_asked():
    recorder, answerer = Recorded({0, 2}), ByHand()
    assert ran(tasks(4), recorder, answerer).answered == 2
    assert set(answerer.asked) == {"p001", "p003"}


def test_a_stop_ends_the_passing_over_of_lines_that_are_done():
    end = time.monotonic() + 3

    def given():
        while time.monotonic() < end:
            yield task(0)

    async def main():
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, stop.set)
        return await run(given(), Recorded({0}), ByHand(), MARKS, stop=stop, pace=FAST)

    assert asyncio.run(main()).answered == 0
    assert time.monotonic() < end


def test_a_line_depends_on_its_id_and_the_seed_alone():
    """Not on what else is asked, nor on which run asks it."""
    first, second, other = Recorded(), Recorded({0, 1, 2}), Recorded()
    ran(tasks(9), first, ByHand(3))
    ran(tasks(9), second, ByHand(1))
    lines = {position: line for position, _, line in first.lines}
    assert all(lines[position] == line for position, _, line in second.lines)
    assert len(second.lines) == 6

    moved = Recorded()
    elsewhere = dataclasses.replace(task(0), position=7, where="other:1")
    ran(iter([elsewhere]), moved, ByHand())
    assert moved.lines[0][2] == lines[0]

    async def with_seed():
        await run(tasks(1), other, ByHand(), Marks(2, 1000), stop=asyncio.Event())

    asyncio.run(with_seed())
    assert other.lines[0][2] != lines[0]


def test_a_passing_obstacle_is_tried_again_and_then_left():
    recorder, answerer = Recorded(), ByHand()
    answerer.status = {"p001": [503, 429], "p002": [503] * 9, "p003": [400]}
    tally = ran(tasks(5), recorder, answerer)
    assert (tally.answered, tally.failed, tally.passed) == (3, 1, 1)
    assert (answerer.asked["p001"], answerer.asked["p002"], answerer.asked["p003"]) == (3, 3, 1)
    assert 2 not in {position for position, *_ in recorder.lines}
    assert [ok for position, ok, _ in recorder.lines if position == 3] == [False]


def test_lines_that_are_no_requests_are_refused_without_being_asked():
    bad = Task(1, "in:2", None, error=LineError("no JSON", code="invalid_json"))
    recorder, answerer = Recorded(), ByHand()
    tally = ran(iter([task(0), bad]), recorder, answerer)
    assert (tally.answered, tally.failed) == (1, 1)
    (line,) = [json.loads(line) for _, ok, line in recorder.lines if not ok]
    assert line["response"]["body"]["error"]["message"] == "no JSON"
    assert set(answerer.asked) == {"p000"}


def test_strict_finishes_what_is_in_flight_and_begins_nothing_new():
    recorder, answerer = Recorded(), ByHand(width=4)
    answerer.status = {"p005": [400]}
    tally = ran(tasks(400), recorder, answerer, Pace(strict=True))
    assert tally.failed == 1
    assert tally.answered + tally.failed == sum(answerer.asked.values()) <= 5 + 4
    assert answerer.cancelled == 0


def test_a_stop_waits_for_what_is_in_flight():
    recorder, answerer = Recorded(), ByHand(width=4)
    tally = ran(tasks(400), recorder, answerer, stop_when=lambda one: sum(one.asked.values()) == 20)
    assert tally.answered == sum(answerer.asked.values()) == len(recorder.lines) < 30
    assert answerer.cancelled == 0


def test_a_stop_waits_no_longer_than_the_grace_time():
    recorder, answerer = Recorded(), ByHand(width=4)
    answerer.gate = asyncio.Event()
    start = time.monotonic()
    tally = ran(
        tasks(9), recorder, answerer, Pace(grace_seconds=0.1), lambda one: len(one.asked) == 4
    )
    assert 0.1 <= time.monotonic() - start < 2
    assert (tally.answered, answerer.cancelled) == (0, 4)
    assert recorder.lines == []


def test_a_stop_does_not_sleep_through_a_backoff():
    answerer = ByHand(width=1)
    answerer.status = {"p000": [503] * 9}
    tally = ran(tasks(3), Recorded(), answerer, Pace(backoff=(60,)), lambda one: True)
    assert (tally.answered, tally.passed) == (0, 1)


def test_a_journal_that_cannot_be_written_ends_the_run_at_once():
    recorder, answerer = Recorded(), ByHand(width=4)
    recorder.room, recorder.fail = 10, BatchError("the disk is full")
    with pytest.raises(BatchError, match="the disk is full"):
        ran(tasks(400), recorder, answerer)
    assert len(recorder.lines) == 10
    assert sum(answerer.asked.values()) <= 20


class DeadError(TpuinferError):
    """The engine's."""


def test_an_engine_that_dies_ends_the_run_with_its_own_error():
    recorder, answerer = Recorded(), ByHand(width=4)
    answerer.fail = {"p006": DeadError("the engine died")}
    with pytest.raises(DeadError, match="the engine died"):
        ran(tasks(400), recorder, answerer)
    assert sum(answerer.asked.values()) <= 20


def test_cancelling_a_run_cancels_what_is_in_flight_and_keeps_what_is_recorded():
    recorder, answerer = Recorded(), ByHand(width=4)

    async def main():
        one = asyncio.create_task(
            run(tasks(99), recorder, answerer, MARKS, stop=asyncio.Event(), pace=FAST)
        )
        while len(recorder.lines) < 20:
            await asyncio.sleep(0)
        answerer.gate = asyncio.Event()
        await asyncio.sleep(0.01)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one

    asyncio.run(main())
    assert answerer.cancelled == 4
    assert 20 <= len(recorder.lines) < 99
    left = 99 - len(recorder.lines)
    answerer.gate = None
    assert ran(tasks(99), recorder, answerer).answered == left


def test_progress_is_told_of_every_line():
    seen = []
    ran(tasks(7), Recorded(), ByHand(), on_progress=lambda tally: seen.append(tally.answered))
    assert seen == [1, 2, 3, 4, 5, 6, 7]
