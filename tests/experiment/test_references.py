"""The logits on one device that cells are compared with: when they are made, and for whom."""

import dataclasses

import numpy as np
import pytest
from experiment.made_records import cells

from tpuinfer.engine.plan import plan_of
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.experiment import probe, running, sweeping
from tpuinfer.experiment.journal import Journal
from tpuinfer.model_config import Rope
from tpuinfer.testing.tiny import TINY

SHORT, LONG = (1.0,) * 4, (2.0,) * 4

LONGROPE = Rope(kind="longrope", short=SHORT, long=LONG, original=256)


class Plans:
    """In place of a `Source`: plans of a tiny model, and no weights."""

    def __init__(self, rope=None):
        self.config = TINY if rope is None else dataclasses.replace(TINY, rope=rope)

    def plan(self, cell):
        return plan_of(
            self.config, mesh=str(cell.mesh), rules=cell.table, dtype="float32", engine=cell.engine
        )

    def params(self, plan):
        return {}


@pytest.fixture
def made(monkeypatch):
    """The plans that references are made of; nothing is compiled."""
    found = []

    def read(plan, params):
        found.append(plan)
        return np.full((4, 8), len(found), np.float32)

    monkeypatch.setattr(probe, "read", read)
    return found


@pytest.fixture
def said():
    return []


@pytest.fixture
def work(tmp_path, said):
    with Journal(tmp_path / "sweep.jsonl") as book:
        yield sweeping._Sweep(book, None, said.append)


def test_rotary_factors_are_those_of_the_cells_longest_context(work, made):
    source = Plans(LONGROPE)
    names = [
        work._reference(cell, source)[0]
        for cell in cells(["2"], ["1d"], ["4x64", "2x64,2x256", "2x64,2x512", "8"])
    ]
    assert [plan.config.rope.short for plan in made] == [SHORT, LONG]
    assert names[0] == names[1] != names[2] == names[3]
    assert [plan.layout.mesh.size for plan in made] == [1, 1]
    assert probe.small(made[1]).config.rope.short == LONG
    assert probe.small(made[1]).context == 128


def test_contexts_that_change_no_bits_share_a_file(work, made):
    for cell in cells(["1", "2"], ["1d", "data"], ["4x64", "4x512"]):
        name, logits, why = work._reference(cell, Plans())
        assert (logits[0, 0], why) == (1, None)
    assert len(made) == 1
    assert [one.name for one in work._book.folder.iterdir()] == [name]


@pytest.mark.parametrize("left", [None, b"", b"\x93NUMPY torn"])
def test_a_reference_that_is_gone_or_torn_is_made_anew(work, made, left):
    (cell,) = cells(["2"], ["1d"])
    name, _, _ = work._reference(cell, Plans())
    path = work._book.folder / name
    path.unlink() if left is None else path.write_bytes(left)
    assert work._reference(cell, Plans())[1][0, 0] == 2
    assert probe.load_file(path)[0, 0] == 2
    assert work._reference(cell, Plans())[1][0, 0] == 2


@pytest.mark.parametrize("changed", ["weights", "params", "files", "platform", "device_kind"])
def test_another_checkpoint_or_device_has_another_file(work, made, monkeypatch, changed):
    (cell,) = cells(["2"], ["1d"])
    before, real = work._reference(cell, Plans())[0], sweeping.identity
    monkeypatch.setattr(
        sweeping, "identity", lambda plan, name: real(plan, name=name) | {changed: "other"}
    )
    assert work._reference(cell, Plans())[0] != before
    assert len(made) == 2


def test_another_jax_has_another_file(work, made, monkeypatch):
    (cell,) = cells(["2"], ["1d"])
    before = work._reference(cell, Plans())[0]
    monkeypatch.setattr(sweeping.jax, "__version__", "9.9")
    assert work._reference(cell, Plans())[0] != before


def test_why_there_is_none_is_told_once(work, made, said, monkeypatch):
    asked = []

    def refuse(plan):
        asked.append(plan.context)
        raise OutOfMemoryError("weights take 9 GB")

    monkeypatch.setattr(running, "refuse_too_much", refuse)
    for cell in cells(["1", "2"], ["1d"], ["4x64", "4x512"]):
        name, logits, why = work._reference(cell, Plans())
        assert (name, logits) == (None, None)
        assert why == "no reference on one device: weights take 9 GB"
    assert (asked, said) == ([128], [why])


def test_rings_of_the_reference_are_short(work, made, monkeypatch):
    asked = []
    monkeypatch.setattr(running, "refuse_too_much", lambda plan: asked.append(plan.context))
    (cell,) = cells(["2"], ["1d"], ["4x1024"])
    work._reference(cell, Plans())
    assert asked == [128]
