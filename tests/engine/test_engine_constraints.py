"""Rows with a constraint on the fake runner: when they pick, and how they fail."""

from collections.abc import Callable, Sequence

from driven import ask, engine, run

from tpuinfer.testing.constraint import FakeConstraint


def only(*tokens: int) -> Callable[[Sequence[int]], Sequence[int]]:
    return lambda taken: tokens


def test_a_constrained_row_holds_nobody_back() -> None:
    """It picks in every second dispatch, the other in each; after it, dispatches are long again."""
    one = engine(steps=4, prefill_rows=2)
    guided = ask("guided", "a", max_tokens=9)
    guided.constraint = FakeConstraint(only(ord("x"), ord("y")), done=3)
    answers = run(one, guided, ask("free", "A", max_tokens=12))
    assert (answers["guided"].text, answers["guided"].finish_reason) == ("xyx", "stop")
    assert answers["free"].text == "BCDEFGHIJKLM"
    assert one.runner.quotas == [
        {0: 0, 1: 1},
        {0: 1, 1: 1},
        {0: 0, 1: 1},
        {0: 1, 1: 1},
        {0: 0, 1: 1},
        {1: 4},
        {1: 2},
    ]


def test_alone_a_constrained_row_is_read_at_once() -> None:
    one = engine(steps=4)
    guided = ask("guided", "a", max_tokens=3)
    guided.constraint = FakeConstraint(only(ord("x")))
    assert run(one, guided)["guided"].text == "xxx"
    assert one.runner.events == [
        ("constrain", 0),
        ("prefill", 0),
        ("result", 0),
        ("constrain", 1),
        ("decode", 1),
        ("result", 1),
        ("constrain", 2),
        ("decode", 2),
        ("result", 2),
    ]


def test_masks_of_one_step_go_out_together() -> None:
    one = engine(slots=4)
    requests = [ask(name, name, max_tokens=2) for name in "abc"]
    for request in requests:
        request.constraint = FakeConstraint(only(ord("x")))
    run(one, *requests)
    kinds = [kind for kind, _ in one.runner.events]
    for place, kind in enumerate(kinds):
        assert kind != "constrain" or kinds[place + 1] != "constrain"


def test_a_constraint_that_fails_is_an_error_of_its_request_only() -> None:
    one = engine()
    bad, free = ask("bad", "a"), ask("free", "A")
    bad.constraint = FakeConstraint(only(ord("x")), fails=2)
    one.add(bad)
    one.add(free)
    deltas = [delta for _ in range(20) for delta in one.step()]
    last = {delta.request_id: delta for delta in deltas}
    assert (last["bad"].finish_reason, last["bad"].error) == (
        "error",
        "nothing may follow 2 tokens",
    )
    assert last["free"].finish_reason == "length"
    assert one.metrics.finished == {"stop": 0, "length": 1, "abort": 0, "error": 1, "preempted": 0}
    assert one.metrics.latency.count == 1
