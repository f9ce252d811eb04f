"""Every mode on a tiny model: what is timed, and what the report says of it."""

import dataclasses

import pytest
import tiny_model

from tpuinfer.benchmark import limits, modes
from tpuinfer.benchmark.bounds import Machine
from tpuinfer.benchmark.modes import Options
from tpuinfer.benchmark.subject import prepare, vocabulary
from tpuinfer.benchmark.workload import Blank
from tpuinfer.checkpoint.load import read_config
from tpuinfer.config import Settings
from tpuinfer.errors import ConfigError, RequestError
from tpuinfer.models import sizes

SMALL = Options(
    batch=(1, 2),
    prompt_tokens=5,
    new_tokens=6,
    rounds=2,
    requests=9,
    prompts=(2, 9),
    answers=(1, 7),
)


@pytest.fixture(scope="module", autouse=True)
def quick_limits():
    """What the machine can do is not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "measure", lambda mesh, dtype: Machine(1e9, 1e10))
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    checkpoint = tiny_model.write_checkpoint(tmp_path_factory.mktemp("bench") / "tiny")
    return Settings(model=str(checkpoint), slots=2, context=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs: all tests run the same ones."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def subject(settings, cache):
    return prepare(settings, cache_dir=cache)


def consistent(row, tokens):
    assert 0 < row.p10 <= row.median <= row.p90
    assert row.tokens_per_second == pytest.approx(1000 * tokens / row.median)
    assert row.fraction == pytest.approx(row.bound / row.median)


def test_decode_has_a_row_for_each_number_of_live_slots(subject):
    report = modes.decode(subject, SMALL)
    assert [row.case["live_slots"] for row in report.rows] == [1, 2]
    for row, live in zip(report.rows, (1, 2), strict=True):
        consistent(row, live)
        cost = subject.cost.decode(live, 5 + 6 / 2)
        assert row.bound == pytest.approx(1000 * cost.seconds(subject.machine))
    assert report.settings["context"] == 64
    assert (report.machine["platform"], report.machine["devices"]) == ("cpu", 1)


def test_prefill_counts_the_tokens_of_the_prompt(subject):
    (row,) = modes.prefill(subject, SMALL).rows
    consistent(row, 5)
    assert row.bound == pytest.approx(1000 * subject.cost.prefill(5).seconds(subject.machine))


def test_batch_counts_output_tokens_and_says_what_the_mix_was(subject):
    report = modes.batch(subject, vocabulary(subject.plan), SMALL)
    (row,) = report.rows
    consistent(row, row.case["output_tokens"])
    assert row.case["output_tokens"] >= 9
    assert report.notes[0].startswith("9 requests: prompts of 2 to 9 tokens")


def test_host_needs_no_device():
    report = modes.host(Blank(50), "letters", 3, Options(rounds=1))
    consistent(report.rows[0], 3)
    assert report.rows[0].bound == modes.HOST_GOAL_MS
    assert report.notes[0].startswith("p99 ")


def test_nothing_is_compiled_for_the_figures(subject):
    modes.decode(subject, SMALL)
    assert subject.runner.recompiles == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": (3,)}, "batch is 3, but 2 slots hold 11 tokens"),
        ({"new_tokens": 60}, "context is 64, but prompt and answer take 65 tokens"),
        ({"new_tokens": 3}, "new-tokens is 3: at least 4"),
    ],
)
def test_what_cannot_be_timed_is_refused(subject, change, words):
    with pytest.raises(ConfigError, match=words):
        modes.decode(subject, dataclasses.replace(SMALL, **change))


def test_a_mix_that_does_not_fit_is_refused(subject):
    with pytest.raises(RequestError, match="the context holds 64"):
        modes.batch(subject, vocabulary(subject.plan), Options(requests=2, prompts=(80, 90)))


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens", "rounds", "requests"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name.replace('_', '-')} is 0: .* nearest: 1"):
        Options(**{name: 0})


def test_random_weights_read_no_file_and_have_no_words(monkeypatch, settings, cache):
    config = read_config(settings.model)
    monkeypatch.setattr(sizes, "sizes", lambda: {"tiny": config})
    nowhere = dataclasses.replace(settings, model="nowhere")
    made = prepare(nowhere, random_weights="tiny", cache_dir=cache)
    assert made.name == "tiny"
    assert isinstance(vocabulary(made.plan), Blank)
    for row in modes.decode(made, dataclasses.replace(SMALL, batch=(2,))).rows:
        consistent(row, 2)


@pytest.mark.parity
def test_against_transformers_every_row_has_a_ratio(settings, cache):
    pytest.importorskip("torch", reason="needs the parity extra (torch)")
    subject = prepare(settings, against="transformers", cache_dir=cache)
    reports = [
        modes.decode(subject, SMALL),
        modes.prefill(subject, SMALL),
        modes.batch(subject, vocabulary(subject.plan), SMALL),
    ]
    for row in (row for report in reports for row in report.rows):
        assert row.peer > 0
        assert 0 < row.ratio_p10 <= row.ratio <= row.ratio_p90
    assert reports[0].model["peer"]["cache"] == "DynamicCache"
