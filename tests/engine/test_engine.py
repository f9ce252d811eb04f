"""The engine on the fake runner: every expectation is worked out by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from driven import ask, engine, run, step

from tpuinfer.engine import engine as engine_module
from tpuinfer.engine.accept import fold
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import (
    MAX_STOP_IDS,
    TOP_LOGPROBS,
    CompletionOutput,
    Request,
    SamplingParams,
)
from tpuinfer.engine.runner import StepTokens
from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.errors import RequestError
from tpuinfer.grammar.guide import Guide
from tpuinfer.testing.fake import FakePending, FakeRunner, FakeTokenizer, add_up
from tpuinfer.testing.fake import answer as by_hand


def test_one_request() -> None:
    answer = run(engine(), ask("r", "abc"))["r"]
    assert answer.text == "defg"
    assert answer.token_ids == [100, 101, 102, 103]
    assert (answer.finish_reason, answer.logprobs) == ("length", None)


def test_nothing_to_do() -> None:
    one = engine()
    assert not one.has_work
    assert one.step() == []
    assert one.metrics.steps == 0


def test_a_long_prompt_goes_in_by_chunks() -> None:
    one = engine(buckets=(2, 4))
    assert run(one, ask("r", "klmnopqrstu", max_tokens=2))["r"].text == "vw"
    assert [kind for kind, _ in one.runner.events if kind != "result"] == ["prefill"] * 3 + [
        "decode"
    ]


def test_the_model_ends_the_text() -> None:
    answer = run(engine(), ask("r", "|", max_tokens=None))["r"]
    assert answer.text == "}~\x7f"
    assert answer.token_ids == [125, 126, 127, 0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)


def test_stop_strings_and_stop_ids() -> None:
    answers = run(
        engine(),
        ask("string", "a", stop=["xx", "de"], max_tokens=10),
        ask("id", "a", stop_token_ids=[101], max_tokens=10),
        ask("ignored", "~", ignore_eos=True, max_tokens=4),
    )
    assert (answers["string"].text, answers["string"].stop_reason) == ("bc", "de")
    assert answers["string"].token_ids == [98, 99, 100, 101]
    assert (answers["id"].text, answers["id"].stop_reason) == ("bcd", 101)
    assert answers["ignored"].token_ids == [127, 0, 1, 2]
    assert answers["ignored"].finish_reason == "length"


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_steps_per_dispatch_change_nothing_but_the_grain(steps: int) -> None:
    answers = run(
        engine(steps=steps),
        ask("a", "a", max_tokens=6, logprobs=0),
        ask("b", "k", max_tokens=10, stop=["pq"]),
        ask("c", "|", max_tokens=10),
    )
    assert [answers[name].text for name in "abc"] == ["bcdefg", "lmno", "}~\x7f"]
    assert answers["a"].logprobs == [-t / 128 for t in range(98, 104)]


def test_decode_steps_are_never_more_than_one_row_can_use() -> None:
    one = engine(steps=8)
    run(one, ask("r", "a", max_tokens=4))
    assert [len(one.runner.sent), one.metrics.generation_tokens] == [2, 4]
    one = engine(steps=8)
    run(one, ask("r", "a", max_tokens=1))
    assert one.runner.events == [("prefill", 0), ("result", 0)]


class WideRunner(FakeRunner):
    """Its decode is compiled for 8 steps, and gives that many rows however few are asked."""

    def decode(self, steps: int, quotas: Mapping[int, int]) -> FakePending:
        result = super().decode(steps, quotas).result()
        more = ((0, 8 - steps), (0, 0))
        wide = StepTokens(
            np.pad(result.tokens, more, constant_values=-1), np.pad(result.logprobs, more)
        )
        return FakePending(wide, 0.0, lambda: None)


def test_rows_beyond_the_steps_asked_are_padding() -> None:
    one = Engine(WideRunner(2), FakeTokenizer(), steps=3)
    answers = run(one, ask("a", "a", max_tokens=4, logprobs=0), ask("b", "k", max_tokens=13))
    assert (answers["a"].text, answers["b"].text) == ("bcde", "lmnopqrstuvwx")
    assert len(answers["a"].logprobs or []) == 4


def test_the_next_dispatch_goes_out_before_the_last_is_read() -> None:
    one = engine()
    run(one, ask("r", "abc", max_tokens=4))
    assert one.runner.events == [
        ("prefill", 0),
        ("decode", 1),
        ("result", 0),
        ("decode", 2),
        ("result", 1),
        ("decode", 3),
        ("result", 2),
        ("result", 3),  # all four tokens were on their way: nothing more was dispatched
    ]


def test_prefill_and_decode_alternate() -> None:
    one = engine(slots=2, buckets=(1, 2))
    one.add(ask("short", "a", max_tokens=20))
    one.step()
    one.add(ask("long", "abcdefgh"))
    for _ in range(4):
        one.step()
    kinds = [kind for kind, _ in one.runner.events if kind != "result"]
    assert kinds == ["prefill", "decode"] * 5
    assert one.runner.sent[-1] == (0, 1)


def test_a_reused_slot_starts_clean() -> None:
    """The example in the engine's docstring, with one slot: A ends by a stop string."""
    one, answers = engine(slots=1), {}
    one.add(ask("A", "a", stop=["d"], max_tokens=50))
    one.add(ask("B", "m", max_tokens=3))
    named = [step(one, answers) for _ in range(6)]
    assert not one.has_work
    assert (answers["A"].text, answers["B"].text) == ("bc", "nop")
    assert answers["A"].token_ids == [98, 99, 100]
    assert named == [["A"], ["A"], ["A"], ["B"], ["B"], ["B"]]
    assert one.runner.events[5:11] == [
        ("decode", 3),  # lists A, which has ended in dispatch 2
        ("result", 2),
        ("prefill", 4),  # B reopens the slot
        ("decode", 5),
        ("result", 3),
        ("result", 4),
    ]


def test_abort_in_every_phase() -> None:
    one, answers = engine(slots=2, buckets=(1, 2)), {}
    one.add(ask("decoding", "a", max_tokens=40))
    one.add(ask("prefilling", "abcdefgh"))
    one.add(ask("waiting", "abc"))
    one.step()
    one.step()
    assert (one.metrics.running, one.metrics.waiting) == (2, 1)
    assert one.abort("waiting")
    assert one.abort("prefilling")
    assert one.abort("decoding")
    assert not one.abort("decoding")
    assert not one.abort("never seen")
    assert (one.metrics.running, one.metrics.waiting) == (0, 0)
    assert one.metrics.finished == {"stop": 0, "length": 0, "abort": 3, "error": 0, "preempted": 0}
    assert one.has_work, "a dispatch is still in flight"
    assert step(one, answers) == []
    assert not one.has_work
    assert run(one, ask("next", "x"))["next"].text == "yz{|"


def test_an_id_is_free_again_and_gets_none_of_the_old_tokens() -> None:
    one = engine(slots=1)
    one.add(ask("r", "a", max_tokens=40))
    one.step()
    with pytest.raises(RequestError, match="'r' is that of a live request"):
        one.add(ask("r", "m"))
    one.abort("r")
    assert run(one, ask("r", "m"))["r"].text == "nopq"


def test_the_caller_may_change_its_list_meanwhile() -> None:
    one = engine(buckets=(1, 2))
    request = ask("r", "abcdef")
    answers: dict[str, CompletionOutput] = {}
    one.add(request)
    request.prompt_token_ids.clear()
    for _ in range(10):
        step(one, answers)
    assert answers["r"].text == "ghij"


def test_seed_and_choice_reach_the_row() -> None:
    answers = run(
        engine(slots=4),
        ask("greedy", "a", seed=5, max_tokens=2),
        ask("zero", "a", seed=0, temperature=1.0, max_tokens=2),
        ask("seeded", "a", seed=5, temperature=1.0, max_tokens=2),
        ask("choice", "a", choice=1, seed=5, temperature=1.0, max_tokens=2),
    )
    names = ("greedy", "zero", "seeded", "choice")
    assert [answers[name].text for name in names] == ["bc", "bc", "gm", "ho"]


def test_no_seed_draws_a_fresh_one() -> None:
    one = engine(slots=8, vocab=128)
    requests = [ask(str(i), "a", temperature=1.0, max_tokens=1, ignore_eos=True) for i in range(32)]
    first = {answer.token_ids[0] for answer in run(one, *requests).values()}
    assert len(first) > 4  # 32 draws of 128 tokens


@pytest.mark.parametrize(
    ("seed", "folded"),
    [(0, 0), (2**32 - 1, 2**32 - 1), (2**32, 1), (5 << 32 | 3, 6), (2**64 - 1, 0), (-2, 1)],
)
def test_fold(seed: int, folded: int) -> None:
    assert fold(seed) == folded


@pytest.mark.parametrize(("max_tokens", "length"), [(4, 4), (100, 6), (None, 6)])
def test_max_tokens_is_cut_to_the_context(max_tokens: int | None, length: int) -> None:
    answer = run(engine(capacity=16), ask("r", "abcdefghij", max_tokens=max_tokens))["r"]
    assert len(answer.token_ids) == length
    assert answer.finish_reason == "length"


def test_the_longest_prompt_that_fits() -> None:
    assert len(run(engine(capacity=16), ask("r", "a" * 15))["r"].token_ids) == 1


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ([], {}, "prompt", "the prompt is empty"),
        ([1] * 16, {}, "prompt", "16 tokens and the context holds 16: .* at most 15 fit"),
        ([1, 128, 2], {}, "prompt", r"token id 128: it must be in \[0, 127\]"),
        ([-1], {}, "prompt", "token id -1"),
        ([1], {"stop_token_ids": [128]}, "stop_token_ids", "has 128: each must be in"),
        (
            [1],
            {"stop_token_ids": range(MAX_STOP_IDS + 1)},
            "stop_token_ids",
            "17 ids beside the model's 1: at most 16",
        ),
    ],
)
def test_refused(prompt: list[int], params: dict[str, Any], param: str, message: str) -> None:
    one = engine(capacity=16)
    with pytest.raises(RequestError, match=message) as refusal:
        one.add(Request("r", prompt, SamplingParams(**params)))
    assert refusal.value.param == param
    assert not one.has_work


def test_as_many_stop_ids_as_the_device_holds() -> None:
    one = engine()
    ids = range(MAX_STOP_IDS)  # 0 is the model's own
    assert run(one, ask("r", "~", stop_token_ids=ids))["r"].token_ids == [127, 0]


def test_a_full_queue_refuses_and_keeps_nothing() -> None:
    one = engine(slots=1, max_waiting=1)
    one.add(ask("a", "a"))
    one.add(ask("b", "k"))
    with pytest.raises(QueueFullError, match="at most 1 may wait"):
        one.add(ask("c", "x"))
    answers = run(one)
    assert sorted(answers) == ["a", "b"]
    assert run(one, ask("c", "x"))["c"].text == "yz{|"


def test_metrics() -> None:
    one = engine(slots=1)
    run(one, ask("a", "abc", max_tokens=4), ask("b", "|", max_tokens=9))
    metrics = one.metrics
    assert metrics.finished == {"stop": 1, "length": 1, "abort": 0, "error": 0, "preempted": 0}
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (4, 8)
    assert (metrics.ttft.count, metrics.inter_token.count, metrics.queue.count) == (2, 6, 2)
    assert metrics.ttft.sum > metrics.queue.sum > 0
    assert (metrics.slots, metrics.running, metrics.waiting) == (1, 0, 0)


def test_shards_share_prefills() -> None:
    one = engine(slots=4, shards=4)
    answers = run(one, *[ask(letter, letter, max_tokens=3) for letter in "aceg"])
    assert [answers[letter].text for letter in "aceg"] == ["bcd", "def", "fgh", "hij"]
    assert one.runner.sent == [(0, 1, 2, 3)] * 3


def test_a_failing_device_is_not_hidden() -> None:
    one = engine()
    one.add(ask("r", "a"))
    one.step()

    def fail(steps: int, quotas: object) -> None:
        raise RuntimeError("the device is gone")

    one.runner.decode = fail
    with pytest.raises(RuntimeError, match="the device is gone"):
        one.step()


def test_alternatives_go_to_the_rows_that_asked() -> None:
    answers = run(
        engine(slots=3, steps=2),
        ask("two", "a", max_tokens=3, logprobs=2),
        ask("none", "k", max_tokens=3),
        ask("one", "u", max_tokens=4, logprobs=1),
        ask("chosen", "A", max_tokens=2, logprobs=0),
    )
    assert answers["two"].top_logprobs == [
        {t: -t / 128, t + 1: -t / 128 - 1} for t in (98, 99, 100)
    ]
    assert answers["one"].top_logprobs == [{t: -t / 128} for t in range(118, 122)]
    assert answers["none"].top_logprobs is answers["chosen"].top_logprobs is None


@pytest.mark.parametrize("logprobs", [-1, TOP_LOGPROBS + 1])
def test_alternatives_beyond_what_there_are(logprobs: int) -> None:
    with pytest.raises(RequestError, match=rf"logprobs is {logprobs}: .* \[0, 20\]"):
        SamplingParams(logprobs=logprobs)


def test_requests_go_by_what_they_need() -> None:
    one = engine(slots=((1, 8), (1, 32)))
    answers = run(
        one,
        ask("short", "a", max_tokens=7),
        ask("long", "a", max_tokens=8),
        ask("whole", "a", max_tokens=None),
        ask("too much", "a", max_tokens=1000),
    )
    lengths = {name: len(answer.token_ids) for name, answer in answers.items()}
    assert lengths == {"short": 7, "long": 8, "whole": 31, "too much": 31}
    sent = one.runner.sent
    assert [sent[0], sent[2]] == [(0,), (1,)], "short and long, each in the ring that suits"
    assert one.context == 32
    with pytest.raises(RequestError, match="32 tokens and the context holds 32"):
        one.add(ask("r", "a" * 32))


def test_rings_that_roll_take_any_prompt_and_any_answer() -> None:
    one = engine(slots=((1, 8), (1, 16)), rolls=True)
    answers = run(
        one,
        ask("long prompt", "a" * 50, max_tokens=3),
        ask("long answer", "!", max_tokens=60),
        ask("unbounded", "!", max_tokens=None),
    )
    assert answers["long prompt"].text == "bcd"
    lengths = [len(answers[name].token_ids) for name in ("long answer", "unbounded")]
    assert lengths == [60, 16]
    assert one.context is None
    with pytest.raises(RequestError, match="the prompt is empty"):
        one.add(ask("r", ""))


def test_only_the_longest_ring_rolls() -> None:
    """A ring that rolled at 8 would forget what one of 16 still holds."""
    one = engine(slots=((1, 8), (1, 16)), rolls=True, rule=add_up)
    prompt = [1, 2, 3, 4]
    got = {
        str(limit): run(
            one,
            Request(
                str(limit), prompt, SamplingParams(temperature=0, max_tokens=limit, ignore_eos=True)
            ),
        )[str(limit)].token_ids
        for limit in (4, 5, 30)
    }
    for limit, tokens in got.items():
        assert tokens == by_hand(prompt, limit=int(limit), rule=add_up, capacity=16)


class Clock:
    """Stands in for `time` in the engine; sleeping is what makes it advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.naps: list[float] = []
        monkeypatch.setattr(engine_module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def test_a_held_prefill_naps_and_then_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    one = engine(slots=4, prefill_rows=2, prefill_wait=0.0025)
    one.add(ask("a", "a"))
    assert one.step() == one.step() == []
    assert (one.runner.events, one.metrics.steps) == ([], 0)
    assert one.step() == []
    assert clock.naps == pytest.approx([0.001, 0.001, 0.0005])
    one.step()
    assert one.runner.events[0] == ("prefill", 0)
    assert one.metrics.steps == 1


def test_a_held_prefill_goes_out_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    one = engine(slots=4, prefill_rows=2, prefill_wait=1.0)
    one.add(ask("a", "a"))
    one.step()
    one.add(ask("b", "k"))
    one.step()
    assert one.runner.sent[0] == (0, 1)
    assert clock.naps == [0.001]


def test_nobody_naps_while_others_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    one, answers = engine(slots=4, prefill_rows=2, prefill_wait=1.0), {}
    one.add(ask("a", "a"))
    one.add(ask("b", "k"))
    step(one, answers)
    one.add(ask("c", "u"))
    for _ in range(3):
        step(one, answers)
    assert (answers["a"].text, answers["b"].text) == ("bcde", "lmno")
    assert (clock.naps, "c" in answers) == ([], False)
    while one.has_work:
        step(one, answers)
    assert answers["c"].text == "vwxy"
    assert sum(clock.naps) == pytest.approx(1.0)


def test_rows_a_shard_share_a_prefill() -> None:
    one = engine(slots=4, prefill_rows=4)
    answers = run(one, *[ask(letter, letter, max_tokens=3) for letter in "aceg"])
    assert [answers[letter].text for letter in "aceg"] == ["bcd", "def", "fgh", "hij"]
    assert one.runner.sent == [(0, 1, 2, 3)] * 3


def test_occupancy_and_recompiles_are_counted() -> None:
    one = engine(slots=4)
    one.runner.recompiles = 2
    run(one, ask("a", "a", max_tokens=3))
    assert (one.metrics.decode_rows, one.metrics.decode_slots) == (2, 8)
    assert (one.metrics.occupancy, one.metrics.recompiles) == (0.25, 2)


def test_a_prompt_is_scored_over_all_its_chunks() -> None:
    one = engine(buckets=(2, 4))
    one.add(ask("r", "klmnopqrstu", prompt_logprobs=1, max_tokens=2))
    first, *others = [delta for _ in range(9) for delta in one.step()]
    targets = [ord(char) for char in "lmnopqrstu"]
    assert first.prompt_logprobs == [None, *[-t / 128 for t in targets]]
    assert first.prompt_top_logprobs == [None, *[{t: -t / 128} for t in targets]]
    assert [delta.prompt_logprobs for delta in others] == [None]


def test_min_tokens() -> None:
    answers = run(
        engine(),
        ask("end", "~", min_tokens=3, max_tokens=9),
        ask("stop", "a", min_tokens=3, stop=["c", "f"], max_tokens=9),
    )
    assert answers["end"].token_ids[:3] == [127, 1, 2]
    assert answers["stop"].text == "bcde"


@pytest.mark.parametrize(
    ("params", "param", "message"),
    [
        ({"logit_bias": {128: 1.0}}, "logit_bias", r"logit_bias has 128: each must be in \[0, 127"),
        ({"min_tokens": 7, "max_tokens": None}, "min_tokens", "context of 16 leaves 6; nearest: 6"),
    ],
)
def test_refused_too(params: dict[str, Any], param: str, message: str) -> None:
    one = engine(capacity=16)
    with pytest.raises(RequestError, match=message) as refusal:
        one.add(ask("r", "a" * 10, **params))
    assert refusal.value.param == param
    assert not one.has_work


def test_what_is_about_text_needs_text() -> None:
    one, guide = engine(), Guide("regex", "a+", "guided_regex")
    one._tokenizer.has_text = False
    for name, asked in (("stop", {"stop": "x"}), ("guided_regex", {"guide": guide})):
        with pytest.raises(RequestError, match=f"{name} is set, but .* no tokenizer") as refusal:
            one.add(ask("r", "a", **asked))
        assert refusal.value.param == name


def test_times_and_lengths_are_counted() -> None:
    one = engine(slots=1)
    run(one, ask("a", "abc", max_tokens=4), ask("b", "|", max_tokens=9))
    metrics = one.metrics
    for histogram in (metrics.prefill, metrics.decode, metrics.latency):
        assert histogram.count == 2
    assert metrics.latency.sum == pytest.approx(
        metrics.queue.sum + metrics.prefill.sum + metrics.decode.sum
    )
    assert (metrics.prompt_lengths.sum, metrics.generation_lengths.sum) == (4, 8)
    assert (metrics.ring_capacity, metrics.ring_tokens, metrics.ring_usage) == (64, 0, 0)
