"""Medians, spread, and who runs when."""

import pytest

from tpuinfer.benchmark.rounds import Spread, alternate, in_turn, outcome, quantile, spread


def test_spread_by_hand():
    assert spread([5.0]) == Spread(5, 5, 5)
    assert spread([float(value) for value in range(11)]) == Spread(5, 1, 9)
    assert quantile([0.0, 10.0], 0.25) == 2.5
    assert quantile([1.0, 2.0, 3.0], 1.0) == 3.0


def test_rounds_alternate_and_the_first_does_not_count():
    order = []
    times = {"ours": iter([[99.0], [1.0, 1.0, 4.0], [2.0], [2.0]])}
    times["theirs"] = iter([[99.0], [3.0], [4.0], [1.0]])

    def turn(name):
        def run():
            order.append(name)
            return next(times[name])

        return run

    outcome = alternate(turn("ours"), turn("theirs"), 3)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert outcome.ours == (1, 1, 4, 2, 2)
    assert outcome.theirs == (3, 4, 1)
    assert outcome.ratios == pytest.approx((3, 2, 0.5))


def test_without_a_peer_there_is_no_ratio():
    outcome = alternate(lambda: [1.0], None, 2)
    assert (outcome.ours, outcome.theirs, outcome.ratios) == ((1, 1), None, None)


def test_of_several_the_order_turns_round_and_each_keeps_its_rounds():
    order, calls = [], iter(range(100))

    def turn(name):
        def run():
            order.append(name)
            return [next(calls)]

        return run

    samples = in_turn([turn(name) for name in "abc"], 2)
    assert "".join(order) == "abc" + "abc" + "cba"
    assert samples == [[[3], [8]], [[4], [7]], [[5], [6]]]
    assert outcome(samples[1], samples[0]).ratios == pytest.approx((3 / 4, 8 / 7))
