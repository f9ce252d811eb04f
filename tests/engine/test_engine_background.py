"""Background requests on the fake engine: they give way, and nothing of them comes out twice."""

from driven import ask, engine, run, step

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import CompletionOutput, Delta, Request


def batch(name: str, prompt: str, choice: int = 0, **params: object) -> Request:
    request = ask(name, prompt, choice, **params)
    request.background = True
    return request


def settle(one: Engine) -> dict[str, CompletionOutput]:
    answers: dict[str, CompletionOutput] = {}
    while one.has_work:
        step(one, answers)
    return answers


def test_a_background_request_is_answered_like_any() -> None:
    one = engine()
    answers = run(one, batch("r", "abc"), ask("i", "k"))
    assert (answers["r"].text, answers["i"].text) == ("defg", "lmno")
    assert one.metrics.preemptions == 0


def test_it_is_ended_for_one_that_waits_and_can_be_added_again() -> None:
    one = engine(slots=1)
    line = batch("line", "abc", choice=2, max_tokens=20)
    one.add(line)
    heard = [delta for _ in range(4) for delta in one.step()]
    assert len(heard) >= 2
    one.add(ask("chat", "k", max_tokens=2))
    deltas = one.step()
    assert deltas[0] == Delta("line", finish_reason="preempted", choice=2)
    assert [delta.request_id for delta in deltas[1:]] == ["chat"], "nothing more is heard of it"
    metrics = one.metrics
    assert (metrics.preemptions, metrics.finished["preempted"]) == (1, 1)
    one.add(line)
    assert metrics.background_running == 0
    assert (metrics.background_waiting, metrics.waiting) == (1, 1)
    answers = settle(one)
    assert answers["chat"].text == "m"
    assert answers["line"].text == "defghijklmnopqrstuvw"


def test_the_slot_is_free_in_the_same_step() -> None:
    one = engine(slots=2)
    for name in "AB":
        one.add(batch(name, "a", max_tokens=40))
    one.step()
    for name in "ab":
        one.add(ask(name, "k"))
    deltas = one.step()
    assert [delta.request_id for delta in deltas if delta.finish_reason] == ["B", "A"]
    metrics = one.metrics
    assert (metrics.running, metrics.waiting, metrics.background_running) == (2, 0, 0)


def test_other_weights_do_not_wait_for_background_requests() -> None:
    """They run as long as an interactive one does, and not a step longer."""
    one, done = engine(slots=2), []
    one.add(ask("chat", "a", max_tokens=6))
    one.add(batch("line", "a", max_tokens=60))
    one.step()
    one.update(1, done.append)
    ends: list[tuple[str, str]] = []
    while not done:
        ends += [(delta.request_id, delta.finish_reason) for delta in one.step()]
    assert [end for end in ends if end[1]] == [("chat", "length"), ("line", "preempted")]
    assert len(ends) > 8, "both went on"
    assert (one.version, one.metrics.running) == (1, 0)
    assert run(one, batch("line", "a"))["line"].text == "cegi"


def test_other_weights_preempt_background_requests_that_are_alone() -> None:
    one, done = engine(slots=2), []
    one.add(batch("line", "a", max_tokens=60))
    one.step()
    one.update(1, done.append)
    assert done == [], "there is a slot to be given up"
    assert one.step()[0].finish_reason == "preempted"
    assert done == [None]


def test_an_aborted_one_is_gone() -> None:
    one = engine(slots=1)
    one.add(batch("line", "a", max_tokens=60))
    one.step()
    assert one.abort("line")
    assert settle(one) == {}
    assert one.metrics.finished["abort"] == 1


def test_what_is_observed_is_interactive_what_is_counted_is_all() -> None:
    one = engine(slots=2)
    run(one, batch("line", "abcde", max_tokens=7), ask("chat", "k", max_tokens=3))
    metrics = one.metrics
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (6, 10)
    assert metrics.finished["length"] == 2
    for histogram in (metrics.ttft, metrics.queue, metrics.prefill, metrics.latency):
        assert histogram.count == 1
    assert (metrics.inter_token.count, metrics.decode.count) == (2, 1)
    assert (metrics.prompt_lengths.sum, metrics.generation_lengths.sum) == (1, 3)
