"""Two versions of a model that speaks, through everything but the flags."""

import functools
import json
import os
import tempfile

import pytest
import tiny_model

from tpuinfer.accuracy import compare
from tpuinfer.accuracy.compare import Question, Variant, evaluate
from tpuinfer.accuracy.report import Report, render
from tpuinfer.accuracy.text import Text
from tpuinfer.errors import ConfigError

TEXT = Text("a test", "It was a dark and stormy night; the rain fell in torrents. " * 4)
QUESTION = Question(TEXT, window=64, chunk=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    paths = [str(tiny_model.write_checkpoint(folder / f"v{seed}", seed)) for seed in (0, 1)]
    return [Variant(path, dtype="float32") for path in paths]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answer(models, cache):
    """The first version against itself, in int8, on meshes, and against the second."""
    first, second = models
    quantised = Variant(first.model, "int8", "int8", "float32")
    spread = Variant(first.model, dtype="float32", mesh="2x4")
    rows_apart = Variant(first.model, dtype="float32", mesh="2", rules="data")
    variants = [first, quantised, spread, second, rows_apart]
    return evaluate(QUESTION, first, variants, cache_dir=cache)


def test_a_model_is_not_apart_from_itself(answer):
    reference, same = answer.reference.scores, answer.rows[0].scores
    assert same.perplexity == reference.perplexity
    assert (same.divergence, same.divergence_max, same.top1) == (0, 0, 1)
    assert reference.divergence == 0


def test_rounding_is_seen_a_mesh_hardly_and_another_version_well(answer):
    _, rounded, spread, other, apart = (row.scores for row in answer.rows)
    assert (apart.divergence < 1e-7, apart.top1) == (True, 1), "rows on both devices"
    assert rounded.divergence > 1e-4
    assert spread.divergence < 1e-7
    assert spread.top1 == 1
    assert other.divergence > 10 * rounded.divergence
    assert other.top1 < rounded.top1 <= 1


def test_sizes_are_those_of_the_scheme(answer):
    """Codes of one byte for what was four; a ring's row of 16 in 16 + 4 bytes for 64."""
    plain, rounded = answer.rows[:2]
    assert 0.25 < rounded.weight_bytes / plain.weight_bytes < 0.31
    assert rounded.ring_bytes / plain.ring_bytes == (16 + 4) / 64
    assert answer.rows[2].weight_bytes == plain.weight_bytes


def test_the_report_says_it_for_people_and_programs(answer):
    report = Report(QUESTION, answer)
    said = json.loads(json.dumps(report.as_json()))
    assert said["format"] == 1
    assert (said["tokens"], said["windows"]) == (answer.windows.scored, len(answer.windows.ids))
    assert [row["weights"] for row in said["rows"]] == ["auto", "int8", "auto", "auto", "auto"]
    assert said["rows"][0]["perplexity_change"] == 0
    assert said["rows"][0]["verdict"] == "recommended"
    assert said["reference"]["perplexity"] == answer.reference.scores.perplexity
    head, _, names, first, *_ = render(report).splitlines()
    assert f"{answer.windows.scored} tokens scored" in head
    assert names.split()[:4] == ["model", "weights", "ring", "mesh"]
    assert "dtype" not in names
    assert first.endswith("reference")


def test_one_alone_has_a_perplexity_and_nothing_else(models, cache):
    alone = evaluate(Question(TEXT, 64, tokens=70, chunk=16), models[0], [], cache_dir=cache)
    assert alone.rows == ()
    assert alone.windows.scored == 70
    table = render(Report(QUESTION, alone))
    assert "perplexity" in table
    assert "KL" not in table


def test_other_tokens_cannot_be_compared(models, cache, monkeypatch):
    whole, seen = compare.load_tokenizer, []

    def other(path, **named):
        seen.append(path)
        made = whole(path, **named)
        return made if len(seen) == 1 else _Shifted(made)

    monkeypatch.setattr(compare, "load_tokenizer", other)
    with pytest.raises(ConfigError, match="read the text as other tokens"):
        evaluate(QUESTION, models[0], [models[1]], cache_dir=cache)


class _Shifted:
    has_text = True

    def __init__(self, tokenizer):
        self.prefix_ids, self._encode = tokenizer.prefix_ids, tokenizer.encode

    def encode(self, *given, **named):
        return [token - 1 for token in self._encode(*given, **named)]


def test_a_window_beyond_the_model_is_refused_before_weights_are_read(models, cache):
    with pytest.raises(ConfigError, match="context"):
        evaluate(Question(TEXT, window=tiny_model.CONTEXT * 2), models[0], [], cache_dir=cache)


def test_a_full_disk_is_one_line(models, cache, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "r+b"))
    with pytest.raises(ConfigError, match="no room for the reference"):
        evaluate(QUESTION, models[0], [models[1]], cache_dir=cache)
