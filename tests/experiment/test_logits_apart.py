"""The logits that cells are compared by, beside numpy's; and how differences are counted."""

import dataclasses

import numpy as np
import pytest
from experiment.made_records import cells, record

from tpuinfer.errors import ConfigError
from tpuinfer.experiment import probe
from tpuinfer.experiment.probe import difference
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.testing import reference
from tpuinfer.testing.tiny import TINY, tiny


def test_prefill_and_decode_are_what_the_model_says():
    one = tiny(mesh="2x2")
    found = probe.read(one.plan, one.params)
    ids = probe.tokens_of(TINY.vocab)
    wanted = reference.log_softmax(reference.logits(TINY, one.weights, ids))
    assert found.shape == (64, TINY.vocab)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_differences_are_counted_over_tokens_and_vocabulary():
    a = np.array([[0.0, -1.0], [-2.0, -np.inf]], np.float32)
    b = np.array([[-1.5, -1.0], [-2.25, -np.inf]], np.float32)
    found = difference(a, b)
    assert (found.max, found.mean, found.top1, found.equal) == (1.5, 1.75 / 4, 0.5, False)
    assert difference(a, a.copy()) == probe.Difference(0.0, 0.0, 1.0, True)
    assert difference(np.float32([[0.0]]), np.float32([[-0.0]])).equal is False


def test_only_cells_that_ran_and_of_one_vocabulary_are_compared(tmp_path):
    with pytest.raises(ConfigError, match="1d on 1 has no logits"):
        difference(record(cells()[0]), record(cells()[1]))
    with pytest.raises(ConfigError, match="of one vocabulary"):
        difference(np.zeros((4, 8), np.float32), np.zeros((4, 9), np.float32))
    gone = dataclasses.replace(record(cells()[0], logits={"file": "x.npy"}), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"x\.npy: the logits cannot be read"):
        probe.load(gone)


def test_logits_are_kept_whole(tmp_path):
    path = tmp_path / "logits" / "a.npy"
    made = np.arange(6, dtype=np.float32).reshape(2, 3)
    probe.keep(path, made)
    np.testing.assert_array_equal(probe.load_file(path), made)
    assert [one.name for one in path.parent.iterdir()] == ["a.npy"]
    whole = path.read_bytes()
    for left in (0, 20, len(whole) - 4):
        path.write_bytes(whole[:left])
        with pytest.raises(ConfigError, match="the logits cannot be read"):
            probe.load_file(path)


def test_names_of_logits_are_durable_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(probe, "sync_folder", lambda path: synced.append((path, [*path.iterdir()])))
    path = tmp_path / "logits" / "a.npy"
    for _ in range(2):
        probe.keep(path, np.zeros((1, 2), np.float32))
    assert synced == [(tmp_path, [path.parent]), (path.parent, [path]), (path.parent, [path])]


def test_a_layout_is_known_by_where_things_lie():
    plan = tiny(mesh="2").plan
    (cell,) = cells(["2"], ["1d"])
    digits = probe.layout_digest(plan, cell.as_json())
    (renamed,) = cells(["2"], {"mine": PRESETS["1d"]}, ["8x64"])
    assert probe.layout_digest(plan, renamed.as_json()) == digits
    assert probe.layout_digest(tiny(mesh="4").plan, cell.as_json()) != digits
    other = dataclasses.replace(plan.layout.rules, reduce="exact")
    layout = dataclasses.replace(plan.layout, rules=other)
    assert probe.layout_digest(dataclasses.replace(plan, layout=layout), cell.as_json()) != digits
