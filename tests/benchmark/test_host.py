"""The host's time, measured with tokens that cost nothing."""

import pytest

from tpuinfer.benchmark.host import EchoRunner, host_round
from tpuinfer.benchmark.workload import Blank
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams


def test_each_timed_step_streams_every_slot():
    times = host_round(Blank(50), slots=64, steps=5)
    assert len(times) == 5
    assert all(0 < time < 1000 for time in times)


def test_an_engine_takes_the_echo_for_a_device():
    engine = Engine(EchoRunner(2, 50, 100), Blank(50))
    how = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    for name in ("a", "b"):
        engine.add(Request(name, (1,), how))
    made = {"a": [], "b": []}
    for _ in range(6):
        for delta in engine.step():
            made[delta.request_id] += delta.token_ids
    assert made["a"] == list(range(made["a"][0], made["a"][0] + len(made["a"])))
    assert made["a"][0] != made["b"][0]
    assert len(made["a"]) == len(made["b"]) >= 4


def test_a_slot_that_does_not_stream_is_noticed(monkeypatch):
    monkeypatch.setattr(Engine, "step", lambda engine: [])
    with pytest.raises(AssertionError, match="0 of 4 slots streamed"):
        host_round(Blank(50), slots=4, steps=2)
