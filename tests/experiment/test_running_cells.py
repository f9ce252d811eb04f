"""A cell on devices: where its weights come from, and figures by a chip's table or by measuring."""

import dataclasses

import pytest
from experiment.made_records import cells

from tpuinfer.benchmark.bounds import Machine
from tpuinfer.errors import ConfigError, OutOfMemoryError
from tpuinfer.experiment import grid, running
from tpuinfer.experiment.source import Source
from tpuinfer.planning import running as here
from tpuinfer.planning import topology
from tpuinfer.programs.compile import compile_programs
from tpuinfer.testing.tiny import tiny


@pytest.mark.parametrize(
    ("model", "origin"),
    [
        ("smollm2-135m", "random"),
        ("Llama-3.1-8B", "random"),
        ("smollm2-135m-instruct", "checkpoint"),
        ("some/model", "checkpoint"),
        ("model.gguf", "checkpoint"),
    ],
)
def test_names_of_sizes_alone_get_random_weights(model, origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Source(model).origin == origin


def test_a_folder_of_that_name_is_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert Source("smollm2-135m").origin == "checkpoint"


def test_random_weights_are_as_they_are_asked_for():
    (cell,) = grid("smollm2-135m", ["2"], ["1d"], ["4x64"], weights="int8", dtype="float32")
    plan = Source("smollm2-135m").plan(cell)
    assert (plan.path, plan.dtype, plan.slots.slots) == (None, "float32", 4)
    assert {str(scheme) for scheme in plan.schemes.values()} == {"int8"}
    with pytest.raises(ConfigError, match="random weights never were"):
        Source("smollm2-135m").plan(dataclasses.replace(cell, weights="published"))


@pytest.fixture(scope="module")
def compiled():
    one = tiny(mesh="2")
    return one.plan, compile_programs([one.specs["decode"]])


def test_on_a_chip_that_is_known_its_figures_count(compiled, monkeypatch):
    plan, programs = compiled
    monkeypatch.setattr(here, "topology_of", lambda mesh: topology.parse("v5e:1x1"))
    (cell,) = cells(["2"], ["1d"])
    found = running._figures(cell, plan, programs)
    assert [*found] == [*programs]
    for one in found.values():
        assert (one["counted"], one["bound_from"]) == ("compiled", "chip")
        assert one["traffic_bytes"] > 0
        assert one["bound_ms"] > 0
        assert one["limit"] in ("HBM", "FLOPs", "ICI")


def test_elsewhere_the_machine_is_measured(compiled, monkeypatch):
    plan, programs = compiled
    monkeypatch.setattr(running, "_limits", lambda device, dtype: Machine(1e6, 1e12))
    (cell,) = cells(["2"], ["1d"])
    found = running._figures(cell, plan, programs)["decode"]
    assert found["limit"] == "memory"
    assert found["bound_from"] == "measured"
    assert found["bound_ms"] == pytest.approx(
        found["bound"]["weights"] + found["bound"]["rings"], rel=1e-6
    )
    assert found["traffic_bytes"] is None
    assert found["collectives"]["reduce-scatter"]["count"] > 0
    assert found["ideal_bytes"] > 0


def test_a_text_that_cannot_be_read_is_unknown(compiled, monkeypatch):
    plan, programs = compiled
    monkeypatch.setattr(running, "_limits", lambda device, dtype: Machine(1e9, 1e12))
    monkeypatch.setattr(running.compiled.hlo, "parse", lambda text: {}["none"])
    (cell,) = cells(["2"], ["1d"])
    found = running._figures(cell, plan, programs)["decode"]
    assert (found["collectives"], found["counted"]) == (None, None)


def test_too_much_is_refused_before_a_weight_is_read(monkeypatch):
    plan = tiny(mesh="2").plan
    running.refuse_too_much(plan)
    monkeypatch.setattr(running, "usable_bytes", lambda mesh: 1000)
    with pytest.raises(OutOfMemoryError, match=r"of a device's 0\.00"):
        running.refuse_too_much(plan)
