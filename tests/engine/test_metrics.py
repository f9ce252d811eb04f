"""Counters by hand."""

import math

from tpuinfer.engine.metrics import Histogram, Metrics


def test_histogram() -> None:
    times = Histogram(bounds=(1, 2, 5))
    for value, count in ((0.5, 1), (1, 1), (1.5, 3), (100, 2)):
        times.observe(value, count)
    assert times.counts == [2, 3, 0, 2]
    assert times.count == 7
    assert times.sum == 0.5 + 1 + 4.5 + 200
    assert times.cumulative() == [(1, 2), (2, 5), (5, 5), (math.inf, 7)]


def test_first_token_then_the_time_between_tokens() -> None:
    metrics = Metrics()
    metrics.admitted(prompt_tokens=10, waited=0.25)
    metrics.generated(1, now=3.0, before=None, arrival=1.0)
    metrics.generated(4, now=5.0, before=3.0, arrival=1.0)
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (10, 5)
    assert (metrics.queue.sum, metrics.queue.count) == (0.25, 1)
    assert (metrics.ttft.sum, metrics.ttft.count) == (2.0, 1)
    assert (metrics.inter_token.sum, metrics.inter_token.count) == (2.0, 4)
    assert metrics.inter_token.cumulative()[8] == (0.5, 4)


def test_background_requests_are_counted_and_not_observed() -> None:
    metrics = Metrics()
    metrics.admitted(prompt_tokens=10, waited=0.25, background=True)
    metrics.generated(1, now=3.0, before=None, arrival=1.0, background=True)
    metrics.generated(4, now=5.0, before=3.0, arrival=1.0, background=True)
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (10, 5)
    observed = (metrics.queue, metrics.ttft, metrics.inter_token, metrics.prompt_lengths)
    assert [histogram.count for histogram in observed] == [0, 0, 0, 0]
    metrics.finished["preempted"] += 2
    assert metrics.preemptions == 2


def test_occupancy() -> None:
    metrics = Metrics(slots=4)
    assert metrics.occupancy == 0
    metrics.decoded(4)
    metrics.decoded(1)
    assert (metrics.decode_rows, metrics.decode_slots, metrics.occupancy) == (5, 8, 0.625)


def test_two_engines_do_not_share_counters() -> None:
    one, two = Metrics(), Metrics()
    one.finished["stop"] += 1
    one.ttft.observe(1.0)
    assert two.finished == {"stop": 0, "length": 0, "abort": 0, "error": 0, "preempted": 0}
    assert two.ttft.count == 0
