"""A request's tokens and log-probabilities are bit-identical, whatever else is running."""

import functools
import random
from typing import Any

import pytest
from configurations import MODELS
from mixes import Record, Traffic, ask, differences, key, serve_alone, serve_mixed

from tpuinfer.engine.request import Request, SamplingParams

COUNT = 50

STEERING = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "prompt_logprobs",
)


def requests_for(name: str) -> tuple[list[Request], list[Request]]:
    """Those whose answers count, and those that may be aborted."""
    model, chance = MODELS[name](), random.Random(name)
    limit = 40 if model.plan.rolls else 24
    asked = [ask(number, chance, model.config.vocab, limit=limit) for number in range(COUNT)]
    doomed = [ask(COUNT + n, chance, model.config.vocab, limit=30) for n in range(12)]
    return asked, doomed


@functools.cache
def alone(name: str) -> tuple[dict[str, Record], Traffic]:
    return serve_alone(MODELS[name](), requests_for(name)[0])


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_alone_and_in_a_mix(name: str, steps: int) -> None:
    model, (asked, doomed) = MODELS[name](), requests_for(name)
    single, seen = alone(name)
    mixed, traffic = serve_mixed(
        model, asked, steps=steps, chance=random.Random(steps), doomed=doomed
    )
    assert differences(single, mixed) == []
    assert_it_was_a_mix(model.plan.slots.slots, asked, seen, traffic)
    rows = max(model.runner().prefill_rows.values()) * model.plan.slots.shards
    assert max(traffic.prefills) == rows
    assert steps > 1 or {1, model.plan.slots.slots} <= {*traffic.decodes}, "from one row to all"


def assert_it_was_a_mix(slots: int, asked: list[Request], seen: Traffic, traffic: Traffic) -> None:
    """Every slot was used, many requests had another one than alone, and some died."""
    names = [key(request) for request in asked]
    assert {traffic.slots[name] for name in names} == {*range(slots)}
    moved = sum(traffic.slots[name] != seen.slots[name] for name in names)
    assert moved > COUNT // 3
    assert traffic.aborted > 1
    assert traffic.waits > 1


def test_the_requests_are_of_every_kind() -> None:
    """What the mixes leave out they cannot show."""
    for name in MODELS:
        asked, _ = requests_for(name)
        params = [request.params for request in asked]
        records = alone(name)[0].values()
        assert {one.logprobs for one in params} == {None, 0, 5, 20}
        assert any(one.temperature == 0 for one in params)
        for free, field in ((0, "top_k"), (1, "top_p"), (0, "min_p"), ((), "stop_token_ids")):
            hot = [one for one in params if one.temperature > 0]
            assert any(getattr(one, field) != free for one in hot), field
        plain = SamplingParams()
        for field in STEERING:
            assert any(getattr(one, field) != getattr(plain, field) for one in params), field
        assert any(record.prompt for record in records)
        assert alone(name)[1].masks > 9
        assert {"stop", "length"} == {record.end[0] for record in records}
        assert max(len(record.chunks) for record in records) > 1
        assert any(record.top for record in records)
        assert max(len(record.tokens) for record in records) > 9


def test_rows_roll_beyond_their_rings() -> None:
    model = MODELS["1, rolling"]()
    asked, _ = requests_for("1, rolling")
    answers = alone("1, rolling")[0]
    total = [
        len(request.prompt_token_ids) + len(answers[request.request_id].tokens) for request in asked
    ]
    assert sum(tokens > model.plan.slots.capacity for tokens in total) > 5


def test_a_difference_is_seen_in_every_part() -> None:
    """The detector itself: one bit, one id, one chunk."""
    one = Record((3, 4), ("stop", 4), b"12345678", (((3, 5), b"12345678"),), (), ())
    assert differences({"r": one}, {"r": one}) == []
    for part, other, at in [
        ("tokens", (3, 5), 1),
        ("end", ("length", None), 0),
        ("logprobs", b"12345679", 7),
        ("top", (((3, 5), b"12345679"),), 0),
        ("prompt", (((3,), b"1234"),), "the end"),
        ("chunks", ((0, 2, 16),), "the end"),
    ]:
        values: dict[str, Any] = {**one._asdict(), part: other}
        changed = Record(**values)
        assert differences({"r": one}, {"r": changed}) == [f"r: {part}[{at}] differs"]
