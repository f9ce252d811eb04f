"""Several schemes in turn: who runs when, what each is said to take, what it is compared with."""

import dataclasses
from types import SimpleNamespace

import pytest
import tiny_model

from tpuinfer.benchmark import limits, report, schemes, steps
from tpuinfer.benchmark.bounds import Machine
from tpuinfer.benchmark.modes import Options
from tpuinfer.benchmark.subject import prepare
from tpuinfer.config import Settings
from tpuinfer.errors import ConfigError
from tpuinfer.models import sizes
from tpuinfer.quant.qarray import QArray

SMALL = Options(batch=(1, 2), prompt_tokens=5, new_tokens=6, rounds=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    checkpoint = tiny_model.write_checkpoint(tmp_path_factory.mktemp("schemes") / "tiny")
    return Settings(model=str(checkpoint), slots=2, context=64)


@pytest.fixture(scope="module")
def subjects(settings, tmp_path_factory):
    """The exact model from its checkpoint; the quantised one of random weights."""
    quantised = dataclasses.replace(settings, weights="int8", ring="int8")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "measure", lambda mesh, dtype: Machine(1e9, 1e10))
        patch.setattr(sizes, "sizes", lambda: {"tiny": tiny_config(settings)})
        return {
            "none": prepare(settings, cache_dir=cache),
            "int8/int8": prepare(quantised, random_weights="tiny", cache_dir=cache),
        }


def tiny_config(settings):
    from tpuinfer.checkpoint.load import read_config

    return read_config(settings.model)


def test_a_scheme_is_weights_and_maybe_a_ring():
    assert schemes.parse("none int4:64,mlp=int8/fp8  a/b.toml a/b.toml/int8") == [
        ("none", "none", ""),
        ("int4:64,mlp=int8/fp8", "int4:64,mlp=int8", "fp8"),
        ("a/b.toml", "a/b.toml", ""),
        ("a/b.toml/int8", "a/b.toml", "int8"),
    ]


@pytest.mark.parametrize("text", ["", "int8", "none int8 none"])
def test_at_least_two_different_ones(text):
    with pytest.raises(ConfigError, match=f"^schemes is '{text}': write at least two"):
        schemes.parse(text)


def test_weights_and_ring_are_kept_as_asked(subjects):
    exact, small = subjects.values()
    assert (exact.weights, exact.ring) == ("none", "float32")
    assert small.weights == f"int8 ({len(small.plan.schemes)})"
    assert small.ring == "int8"
    said = small.describe_model()
    assert (said["weights"], said["ring"]) == (small.weights, "int8")
    kept = small.runner._params
    assert {name for name, one in kept.items() if isinstance(one, QArray)} == set(
        small.plan.schemes
    )


def test_bytes_and_bound_are_of_the_codes(subjects):
    """Rows of 64 bfloat16 are 64 codes and a scale; float32 heads of 16 are 16 and a scale."""
    exact, small = subjects.values()
    assert small.kv_bytes * (16 * 4) == exact.kv_bytes * (16 + 4)
    assert small.cost.ring_bytes * (16 * 4) == exact.cost.ring_bytes * (16 + 4)
    by_hand = sum(
        one.nbytes if isinstance(one, QArray) else 2 * one.size
        for one in small.runner._params.values()
    )
    assert small.weight_bytes == small.cost.weight_bytes == by_hand
    assert exact.weight_bytes / 2 < small.weight_bytes < exact.weight_bytes / 1.8


def test_every_scheme_has_a_row_with_its_memory_and_its_ratio(subjects, monkeypatch):
    """Times by hand: the exact one takes 6 and 4 ms, the quantised one 2, a peer 3."""
    exact, small = subjects.values()
    order = []
    times = {"none": iter([9.0, 6, 4] * 2), "int8/int8": iter([9.0, 2, 2] * 2)}

    def ours(runner, prompt, *, live, new_tokens, steps):
        (name,) = (name for name, one in subjects.items() if one.runner is runner)
        order.append(name)
        return [next(times[name])]

    def theirs(prompt, *, live, new_tokens):
        order.append("peer")
        return [3.0]

    monkeypatch.setattr(steps, "decode_round", ours)
    settings = {"name": "llama.cpp", "weights": "q8_0", "weight_bytes": 5_000, "kv_bytes": 600_000}
    peer = SimpleNamespace(settings=settings, decode_round=theirs)
    beside = {"none": dataclasses.replace(exact, peer=peer), "int8/int8": small}
    made = schemes.decode(beside, SMALL)
    names = ["none", "int8/int8", "peer"]
    assert order == [*names, *names, *reversed(names)] * 2
    assert [row.figure.split(", ", 1)[1] for row in made.rows] == [
        f"{live} live, {name}" for live in (1, 2) for name in (*names[:2], "llama.cpp q8_0")
    ]
    first, second, third = made.rows[3:]
    assert (first.median, first.ratio) == (5, None)
    assert (second.median, second.peer, second.ratio) == (2, 5, 2.5)
    assert (third.ratio, third.bound, third.fraction) == (
        pytest.approx((2 + 4 / 3) / 2),
        None,
        None,
    )
    assert second.tokens_per_second == 1000
    assert second.bound == pytest.approx(1e3 * small.cost.decode(2, 8).seconds(small.machine))
    assert (second.weight_bytes, second.kv_bytes) == (small.weight_bytes, small.kv_bytes)
    assert (third.weight_bytes, third.kv_bytes) == (5_000, 600_000)
    head, *lines = (
        line for line in report.render(made).splitlines() if "ms  " in line or "figure" in line
    )
    assert head.endswith("weights MB  kv MB")
    assert lines[-1].endswith("0.0050      0.6000")
    assert f"int8/int8: weights {small.weights}; ring int8" in made.notes


def test_real_rounds(subjects):
    rows = schemes.decode(subjects, dataclasses.replace(SMALL, batch=(2,), rounds=1)).rows
    assert [row.case["scheme"] for row in rows] == [0, 1]
    assert rows[1].ratio == pytest.approx(rows[0].median / rows[1].median)


def test_what_was_published_quantised_was_no_random_weight(settings):
    published = dataclasses.replace(settings, weights="published")
    with pytest.raises(ConfigError, match="weights is 'published', and random weights never were"):
        prepare(published, random_weights="smollm2-135m")
