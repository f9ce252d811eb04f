"""Windows of lines: what they hold, in which order they go, and who reads them."""

import asyncio
import json
import math
import threading
import time

import pytest

from tpuinfer.offline.order import Feed, cost, read_window
from tpuinfer.offline.task import BatchError, LineError, Task


def task(position, url="/v1/completions", **body):
    return Task(position, f"in:{position}", f"id-{position}", url, json.dumps(body).encode())


def never(position):
    return False


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"max_tokens": 40}, 40),
        ({"max_tokens": 40, "n": 3}, 120),
        ({"max_completion_tokens": 7, "max_tokens": 40}, 7),
        ({}, 256),
        ({"max_tokens": "many", "n": -1}, 256),
    ],
)
def test_a_line_costs_its_prompt_and_its_answers(body, tokens):
    made = task(0, **body)
    assert cost(made) == len(made.body) / 4 + tokens


def test_other_lines_cost_what_they_have():
    vector = task(0, "/v1/embeddings", input="x" * 100)
    assert cost(vector) == len(vector.body) / 4
    assert cost(Task(0, "in:1", None, error=LineError("no", code="x"))) == math.inf
    assert cost(Task(0, "in:1", "a", "/v1/completions", b"[]")) == 0.5
    assert cost(Task(0, "in:1", "a", "/v1/completions", b"{")) == 0.25


def test_a_window_ends_by_lines_or_bytes_and_pops_its_longest_first():
    tasks = [task(i, max_tokens=limit) for i, limit in enumerate([3, 9, 1, 5, 2, 9])]
    reading = iter(tasks)
    window = read_window(reading, never, lines=4)
    assert [window.pop().position for _ in range(4)] == [1, 3, 0, 2]
    assert [one.position for one in read_window(reading, never, lines=4)] == [4, 5]
    assert read_window(reading, never, lines=4) == []
    by_bytes = read_window(iter(tasks), never, lines=9, size=len(tasks[0].body) + 1)
    assert len(by_bytes) == 2


def test_what_rows_hold_beside_the_prompt_counts_too():
    rows = [{"text": "x" * 5000}, {"of": [{"deep": "x" * 5000}]}, {"n": 1}, {"n": 2}]
    given = iter([Task(n, f"in:{n}", f"id-{n}", "/v1", b"{}", row) for n, row in enumerate(rows)])
    windows = [read_window(given, never, lines=9, size=4000) for _ in range(3)]
    assert [len(window) for window in windows] == [1, 1, 2]


def test_equal_lines_go_in_the_inputs_order_and_done_ones_not_at_all():
    tasks = iter([task(i, max_tokens=5) for i in range(6)])
    window = read_window(tasks, lambda position: position % 2 == 0, lines=9)
    assert [one.position for one in reversed(window)] == [1, 3, 5]


def test_a_feed_hands_each_line_out_once_and_reads_on_a_thread():
    readers = set()

    def tasks():
        for position in range(25):
            readers.add(threading.current_thread())
            yield task(position, max_tokens=position)

    async def take(feed, taken):
        while (one := await feed.next()) is not None:
            taken.append(one.position)
            await asyncio.sleep(0)

    async def main():
        taken = []
        async with Feed(tasks(), never, lines=10) as feed:
            await asyncio.gather(*(take(feed, taken) for _ in range(4)))
        return taken

    taken = asyncio.run(main())
    assert sorted(taken) == list(range(25))
    assert taken[0] == 9
    assert threading.main_thread() not in readers


def test_the_next_window_is_read_before_this_one_is_empty():
    read = []

    def tasks():
        for position in range(30):
            read.append(position)
            yield task(position)

    async def main():
        async with Feed(tasks(), never, lines=10) as feed:
            await feed.next()
            while len(read) < 20:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            return len(read)

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 20


def test_leaving_a_feed_ends_the_passing_over_of_lines_that_are_done():
    end = time.monotonic() + 3

    def tasks():
        while time.monotonic() < end:
            yield task(0)

    async def main():
        async with Feed(tasks(), lambda position: True, lines=1):
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert time.monotonic() < end


def test_an_input_that_breaks_off_is_everybodys_error():
    def tasks():
        yield task(0)
        raise BatchError("gone")

    async def main():
        async with Feed(tasks(), never, lines=1) as feed:
            assert (await feed.next()).position == 0
            for _ in range(2):
                with pytest.raises(BatchError, match="gone"):
                    await feed.next()

    asyncio.run(main())


def test_leaving_early_waits_for_the_reader():
    ended = threading.Event()
    go = threading.Event()

    def tasks():
        yield task(0)
        go.wait(5)
        ended.set()

    async def main():
        async with Feed(tasks(), never, lines=1) as feed:
            await feed.next()
            asyncio.get_running_loop().call_later(0.05, go.set)
        assert ended.is_set()

    asyncio.run(main())
