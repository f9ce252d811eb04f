"""The sweep around its cells: what it keeps, skips, survives and refuses. Nothing is compiled."""

import json
import signal

import numpy as np
import pytest
from experiment.made_records import Stand, cells, too_much

from tpuinfer.errors import CheckpointError, ConfigError, MeshError
from tpuinfer.experiment import difference, running, sweeping
from tpuinfer.experiment.source import Source
from tpuinfer.experiment.sweeping import sweep
from tpuinfer.sharding.presets import PRESETS


@pytest.fixture
def out(tmp_path):
    return tmp_path / "sweep.jsonl"


@pytest.fixture
def stand(monkeypatch):
    made = Stand()
    monkeypatch.setattr(running, "run", made)
    monkeypatch.setattr(Source, "check", lambda source: None)

    def reference(sweep, cell, source):
        return "r.npy", np.full((4, 8), np.log(0.125), np.float32), None

    monkeypatch.setattr(sweeping._Sweep, "_reference", reference)
    return made


def keys(records):
    return [one.key for one in records]


def test_records_come_in_the_order_of_the_cells(out, stand):
    given = cells(["1", "2", "4"])
    sweep(given[3:], out)
    said = []
    found = sweep(given, out, note=said.append)
    assert keys(found) == [one.key for one in given]
    assert len(stand.ran) == 6
    assert said[0].startswith("3 of 6 cells are in ")
    assert [line.split()[0] for line in said[1:]] == ["[1/6]", "[2/6]", "[3/6]"]
    assert sweep(given, out) == found
    assert len(stand.ran) == 6


def test_a_cell_that_fails_is_a_record_and_the_sweep_goes_on(out, stand):
    stand.fail = {
        "1/1d": too_much(),
        "1/data": MeshError("two\nlines"),
        "2/1d": AssertionError("a bug"),
    }
    found = sweep(cells(), out)
    assert [(one.status, one.why) for one in found] == [
        ("does not fit", "weights take 9 GB"),
        ("refused", "two lines"),
        ("failed", "AssertionError: a bug"),
        ("ok", None),
    ]
    assert stand.ran == ["2/data"]
    stand.fail = {}
    assert sweep(cells(), out) == found
    assert [one.status for one in sweep(cells(), out, retry=True)] == ["ok"] * 4
    assert len(out.read_text().splitlines()) == 7


def test_what_is_asked_to_stop_says_how_far_it_came(out, stand):
    stand.fail = {"2/1d": KeyboardInterrupt()}
    said = []
    with pytest.raises(KeyboardInterrupt):
        sweep(cells(), out, note=said.append)
    assert said[-1].startswith("2 of 4 cells are in ")
    stand.fail = {}
    assert [one.status for one in sweep(cells(), out)] == ["ok"] * 4
    assert stand.ran == ["1/1d", "1/data", "2/1d", "2/data"]


def test_cells_that_lie_alike_must_have_the_same_bits(out, stand):
    said = []
    found = sweep(cells(), out, note=said.append)
    assert [one.logits["same_layout"] for one in found] == [None, found[0].key, None, found[2].key]
    assert [one.logits["same_bits"] for one in found] == [None, True, None, True]
    assert all(one.logits["equal"] for one in found)
    assert not any("lies alike" in line for line in said)


def test_other_bits_are_told(out, stand):
    stand.bits = {"data": 1e-6}
    said = []
    found = sweep(cells(), out, note=said.append)
    assert [one.logits["same_bits"] for one in found] == [None, False, None, False]
    assert found[1].logits["max"] == pytest.approx(1e-6, rel=0.2)
    assert (found[0].logits["equal"], found[1].logits["equal"]) == (True, False)
    assert sum("lies alike and has other bits" in line for line in said) == 2
    assert difference(found[0], found[1]).max == found[1].logits["max"]


@pytest.mark.parametrize("left", [None, b"", b"\x93NUMPY torn"])
def test_a_cell_that_ran_is_kept_though_its_twins_logits_are_gone(out, stand, left):
    (first, _), given = sweep(cells(["1"]), out), cells(["1"], ("1d", "data", "fsdp"))
    file = first.folder / first.logits["file"]
    file.unlink() if left is None else file.write_bytes(left)
    assert sweep(given, out)[2].logits["same_layout"] == given[1].key
    for other in file.parent.iterdir():
        other.unlink()
    found = sweep(cells(["1"], ("1d", "data", "fsdp", "2d")), out)[3]
    assert (found.status, found.logits["same_layout"], found.logits["same_bits"]) == (
        *("ok", None, None),
    )


def test_a_renamed_table_does_not_run_again(out, stand):
    sweep(cells(["1"], {"old": PRESETS["fsdp"]}), out)
    (found,) = sweep(cells(["1"], {"new": PRESETS["fsdp"]}), out)
    assert (found.cell["rules"], stand.ran) == ("new", ["1/old"])
    assert len(out.read_text().splitlines()) == 1


def test_records_of_other_devices_are_not_mixed(out, stand):
    sweep(cells(), out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line in lines:
        line["where"]["device_kind"] = "TPU v5 lite"
    out.write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    with pytest.raises(ConfigError, match="holds cells that ran on TPU v5 lite, and here is cpu"):
        sweep(cells(), out)


def test_what_all_cells_need_is_found_before_the_first(out):
    with pytest.raises(CheckpointError, match="no/such"):
        sweep(cells(model="no/such.gguf"), out)
    with pytest.raises(ConfigError, match="there are no cells"):
        sweep([], out)
    with pytest.raises(ConfigError, match="compile is set, and there is no topology"):
        sweep(cells(), out, compile=True)
    assert not out.exists() or not out.read_text()


def test_a_mesh_that_the_process_is_too_small_for_is_no_record(out):
    with pytest.raises(MeshError, match="needs 16 devices, and jax has started with 8"):
        sweep(cells(["1", "16"]), out)


def test_a_kill_while_a_line_is_written_loses_that_cell_only(out, stand):
    sweep(cells(), out)
    out.write_bytes(out.read_bytes()[:-40])
    assert len(sweep(cells(), out)) == 4
    assert stand.ran[4:] == ["2/data"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
