"""The file of records: torn lines, other files, two sweeps at once."""

import json

import pytest
from experiment.made_records import cells, record

from tpuinfer.errors import ConfigError
from tpuinfer.experiment import journal
from tpuinfer.experiment.journal import Journal, load
from tpuinfer.experiment.record import VERSION, Record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.jsonl"


@pytest.fixture
def made():
    return [record(cell) for cell in cells()]


def test_what_was_written_is_read(path, made):
    with Journal(path) as book:
        for one in made:
            book.add(one)
    with Journal(path) as book:
        assert [*book] == made
        assert book.get(made[1].key) == made[1]
        assert book.get("nothing") is None
    assert load(path) == made
    assert load(path)[0].folder == path.with_name("sweep.jsonl.logits")


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_torn_last_line_is_dropped(path, made, left):
    with Journal(path) as book:
        for one in made[:2]:
            book.add(one)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[:first] + whole[first:][:left])
    assert load(path) == made[:1]
    with Journal(path) as book:
        assert [*book] == made[:1]
        book.add(made[2])
    assert load(path) == [made[0], made[2]]


def test_of_a_key_the_last_line_counts(path, made):
    again = record(cells()[0], 9.0)
    with Journal(path) as book:
        for one in (made[0], made[1], again):
            book.add(one)
    assert load(path) == [again, made[1]]


def test_another_version_is_one_clear_error(path, made):
    data = made[0].as_json() | {"version": VERSION + 1}
    path.write_text(json.dumps(data) + "\n")
    with pytest.raises(ConfigError, match=r"jsonl:1: is a record of version 2, and this one"):
        Journal(path)


@pytest.mark.parametrize(
    "text",
    ["hello", "hello\nworld\n", '{"custom_id": 1}\n', "\x00\x01", '{"version": 1}\n', "[]\n"],
)
def test_what_is_no_sweep_is_left_alone(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match="no record of a sweep; give another --out"):
        Journal(path)
    assert path.read_text() == text


def test_two_sweeps_do_not_share_a_file(path, made):
    with Journal(path), pytest.raises(ConfigError, match="another sweep writes to this file"):
        Journal(path)
    with Journal(path) as book:
        book.add(made[0])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is no folder; make it"):
        Journal(tmp_path / "none" / "sweep.jsonl")
    with pytest.raises(ConfigError, match="cannot be opened for writing"):
        Journal(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.jsonl")


def test_a_record_lacks_a_field(made):
    data = made[0].as_json()
    assert Record.from_json({**data, "later": 1}, "here") == made[0]
    del data["where"]
    with pytest.raises(ConfigError, match="here: a record lacks where"):
        Record.from_json(data, "here")


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"cell": {}}, r"cell\.model, cell\.topology"),
        ({"cell": None}, "cell;"),
        ({"where": {"how": "ran"}}, r"where\.platform"),
        ({"key": ""}, "key;"),
        ({"hbm": {"weights": 1}}, r"hbm\.rings"),
        ({"logits": {}}, r"logits\.file"),
        ({"programs": {}}, r"programs\.decode;"),
        ({"programs": {"decode": {"limit": "memory"}}}, r"programs\.decode\.bound_ms"),
        ({"programs": []}, "programs;"),
    ],
)
def test_a_line_without_what_is_read_of_it_is_named(path, made, change, lacks):
    lines = [one.as_json() for one in made[:2]]
    lines[1] |= change
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(ConfigError, match=rf"sweep\.jsonl:2: a record lacks .*{lacks}"):
        load(path)


def test_a_refused_cell_needs_no_figures(path, made):
    nothing = {"status": "refused", "programs": {}, "hbm": None, "logits": None}
    path.write_text(json.dumps(made[0].as_json() | nothing) + "\n")
    assert load(path)[0].status == "refused"


def test_the_files_name_is_durable_before_a_line_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal, "sync_folder", synced.append)
    with Journal(tmp_path / "sweep.jsonl"):
        assert synced == [tmp_path]


def test_a_record_tells_its_figures(made):
    one = made[0]
    assert (one.mesh, one.step_ms, one.chunk["measured_ms"]["median"]) == ("1", 2.0, 7.0)
    assert record(cells()[0], None).step_ms == 1.0
    named = {**one.cell, "mesh": {"data": 2, "expert": 4, "model": 2}}
    assert Record("k", named, {}, "ok").mesh == "data=2,expert=4,model=2"
    empty = Record("k", one.cell, {}, "refused", "so")
    assert (empty.decode, empty.chunk, empty.step_ms) == ({}, {}, None)
