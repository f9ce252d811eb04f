"""The suite can fail: each promise, broken by hand, shows in the answers it gets."""

import random
from collections.abc import Callable

import pytest
from configurations import quantised, window
from mixes import Record, ask, differences, serve, serve_alone, serve_mixed
from mutations import (
    Mutation,
    activations_by_the_batch,
    chunks_by_load,
    idle_rows_write,
    key_of_the_neighbour,
    mutated,
    padding_writes,
    ring_scales_by_the_call,
)

from tpuinfer.engine.request import Request
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer
from tpuinfer.testing.tiny import Tiny

COUNT = 40


@pytest.mark.parametrize(
    ("mutation", "program", "part"),
    [
        (padding_writes, "prefill_1x16", "logprobs"),
        (idle_rows_write, "prefill_4x16", "logprobs"),
        (key_of_the_neighbour, "decode", "tokens"),
    ],
)
def test_a_mutation_is_caught(mutation: Mutation, program: str, part: str) -> None:
    model, chance = window(), random.Random(0)
    requests = [ask(number, chance, model.config.vocab) for number in range(COUNT)]
    programs = mutated(model, mutation, program)
    alone, _ = serve_alone(model, requests, programs)
    mixed, _ = serve_mixed(model, requests, steps=1, chance=chance, programs=programs)
    found = differences(alone, mixed)
    assert any(f" {part}[" in line for line in found), found


@pytest.mark.parametrize(
    ("mutation", "program"),
    [(activations_by_the_batch, "decode"), (ring_scales_by_the_call, "prefill_4x16")],
)
def test_a_mutation_of_what_is_rounded_is_caught(mutation: Mutation, program: str) -> None:
    model, chance = quantised(), random.Random(0)
    requests = [ask(number, chance, model.config.vocab) for number in range(COUNT)]
    programs = mutated(model, mutation, program)
    alone, _ = serve_alone(model, requests, programs)
    mixed, _ = serve_mixed(model, requests, steps=1, chance=chance, programs=programs)
    found = differences(alone, mixed)
    assert any(" logprobs[" in line for line in found), found


@pytest.mark.parametrize("make", [window, quantised])
def test_the_same_requests_without_a_mutation(make: Callable[[], Tiny]) -> None:
    model, chance = make(), random.Random(0)
    requests = [ask(number, chance, model.config.vocab) for number in range(COUNT)]
    alone, _ = serve_alone(model, requests)
    mixed, _ = serve_mixed(model, requests, steps=1, chance=chance)
    assert differences(alone, mixed) == []


@pytest.mark.parametrize("broken", [False, True])
def test_chunks_cut_by_load_are_caught(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the schedule, whatever the bits: a CPU may give both schedules the same."""
    chance = random.Random(0)
    requests = [ask(number, chance, 128) for number in range(COUNT)]
    if broken:
        chunks_by_load(monkeypatch)

    def served(these: list[Request], chance: random.Random | None = None) -> dict[str, Record]:
        runner = FakeRunner([(6, 32), (2, 96)], buckets=(8, 16))
        return serve(runner, these, tokenizer=FakeTokenizer(), chance=chance)[0]

    alone: dict[str, Record] = {}
    for one in requests:
        alone |= served([one])
    found = differences(alone, served(requests, chance))
    assert any(" chunks[" in line for line in found) == broken, found
    assert all(" chunks[" in line for line in found), found
