"""Interactive latency under a full batch load, in modelled time: nothing here sleeps.

The device takes one unit for a decode and `prefill` units for a prefill, one after the other; the
host takes none.
"""

import random
from dataclasses import dataclass, field
from unittest import mock

import pytest

from tpuinfer.engine import engine as engine_module
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.testing import fake
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

SLOTS = 8
REQUESTS = 200


class Clock:
    """Stands in for `time`: it moves when somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Heard:
    """When an interactive request came, and its tokens."""

    arrival: float
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        return self.tokens[0] - self.arrival

    @property
    def whole(self) -> float:
        return self.tokens[-1] - self.arrival

    @property
    def between(self) -> float:
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)


class Load:
    """Interactive requests now and then, and as many background ones as there is room for."""

    def __init__(self, prefill: float, every: float, *, background: bool) -> None:
        self.clock = Clock()
        self.runner = FakeRunner(SLOTS, capacity=64, buckets=(4, 8), prefill_rows=2)
        self.runner.seconds = {"prefill": prefill, "decode": 1.0}
        self.engine = Engine(self.runner, FakeTokenizer(), max_waiting=SLOTS)
        self.heard: dict[str, Heard] = {}
        self.every, self.background, self.tokens, self.lines = every, background, 0, 0
        self.chance, self.line_chance = random.Random(0), random.Random(1)

    def run(self) -> list[Heard]:
        with (
            mock.patch.object(engine_module, "time", self.clock),
            mock.patch.object(fake, "time", self.clock),
        ):
            due = 0.0
            while len(self.heard) < REQUESTS:
                due += self.chance.expovariate(1 / self.every)
                self.work_until(due)
                self.ask(due)
            self.work_until(due + 1000)
        assert all(heard.tokens for heard in self.heard.values())
        return list(self.heard.values())

    def work_until(self, due: float) -> None:
        while self.clock.now < due:
            while self.background and self.engine.metrics.background_waiting < SLOTS:
                self.add(f"line-{self.lines}", self.line_chance, self.clock.now, background=True)
                self.lines += 1
            if not self.engine.has_work:
                self.clock.now = due
            for delta in self.engine.step():
                if delta.request_id in self.heard:
                    assert len(delta.token_ids) == 1
                    self.heard[delta.request_id].tokens.append(self.clock.now)
                else:
                    self.tokens += len(delta.token_ids)

    def ask(self, due: float) -> None:
        name = f"chat-{len(self.heard)}"
        self.add(name, self.chance, due)
        self.heard[name] = Heard(due)

    def add(
        self, name: str, chance: random.Random, arrival: float, *, background: bool = False
    ) -> None:
        prompt = [1] * chance.randint(1, 40)
        params = SamplingParams(temperature=0, max_tokens=chance.randint(2, 20))
        self.engine.add(Request(name, prompt, params, background=background, arrival=arrival))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def last(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[len(values) * 95 // 100]


@pytest.mark.parametrize("prefill", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("busy", [0.2, 0.5])
def test_a_batch_costs_interactive_requests_at_most_half_as_much_again(
    prefill: float, busy: float
) -> None:
    """On average; and to the first token and to the last one, for 95 of 100 too.

    `busy` is the part of the time that interactive prefills take.
    """
    every = prefill * 3 / busy
    alone, beside = Load(prefill, every, background=False), Load(prefill, every, background=True)
    without, with_batch = alone.run(), beside.run()
    for figure in ("first", "between", "whole"):
        before, after = ([getattr(one, figure) for one in heard] for heard in (without, with_batch))
        assert mean(after) <= 1.5 * mean(before), figure
        assert figure == "between" or last(after) <= 1.5 * last(before), figure
    metrics = beside.engine.metrics
    assert metrics.occupancy > 1.3 * alone.engine.metrics.occupancy, "the batch gets nothing done"
    assert (metrics.ttft.count, metrics.latency.count) == (REQUESTS, REQUESTS)
    assert metrics.ttft.sum == pytest.approx(sum(heard.first for heard in with_batch))
