"""Other weights for an engine on the fake runner: between requests, and only if they fit."""

import pytest
from driven import ask, engine, run, step

from tpuinfer.errors import RequestError


def test_other_weights_come_between_requests() -> None:
    """Those that run end with the old ones; those that wait get the new ones."""
    one, answers, done = engine(slots=1), {}, []
    one.add(ask("old", "a"))
    one.add(ask("new", "a"))
    step(one, answers)
    one.update(1, done.append)
    with pytest.raises(RequestError, match="other weights are waiting"):
        one.update(2, done.append)
    one.add(ask("later", "a"))
    while one.has_work:
        assert not done or answers["old"].finish_reason == "length"
        step(one, answers)
    assert done == [None]
    texts = [answers[name].text for name in ("old", "new", "later")]
    assert texts == ["bcde", "cegi", "cegi"]
    assert (one.version, one.metrics.version) == (1, 1)


def test_weights_that_do_not_fit_leave_the_old_ones() -> None:
    one, done = engine(), []
    one.update("no number", done.append)
    assert "no number" in str(done[0])
    assert run(one, ask("r", "a"))["r"].text == "bcde"
    one.update(1, done.append)
    assert (one.version, done[1:]) == (1, [None])


def test_weights_that_wait_are_work() -> None:
    one, done = engine(), []
    one.add(ask("r", "a", max_tokens=40))
    one.step()
    one.update(1, done.append)
    one.abort("r")
    assert one.has_work
    one.step()
    assert done == [None]
