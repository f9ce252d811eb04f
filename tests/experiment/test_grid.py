"""What a grid holds, in which order, and what the key of a cell depends on."""

import dataclasses

import pytest

from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.experiment.cell import Cell, grid, table_data, tables_of
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import ShardingRules

M = "smollm2-135m-instruct"


def test_slots_vary_fastest_and_topologies_slowest():
    cells = grid(M, ["1x8", "2x4"], ["1d", "2d"], ["8", "16"], topology=["v5e:2x4", "v6e:2x4"])
    names = [(one.topology, one.mesh.axes[0][1], one.rules, one.slots) for one in cells]
    assert names[:3] == [
        ("v5e:2x4", 1, "1d", "8"),
        ("v5e:2x4", 1, "1d", "16"),
        ("v5e:2x4", 1, "2d", "8"),
    ]
    assert (len(names), names[4][1], names[8][0]) == (16, 2, "v6e:2x4")
    assert len({one.key for one in cells}) == 16


def test_a_cell_is_there_once():
    assert len(grid(M, ["8", "1x8", "model=8"], "1d")) == 1


def test_all_meshes_of_a_slice():
    cells = grid(M, ["all"], topology="v5e:2x2")
    assert [str(one.mesh) for one in cells] == [
        "data=1,model=4",
        "data=2,model=2",
        "data=4,model=1",
    ]
    with pytest.raises(ConfigError, match="goes with a topology"):
        grid(M, ["all"])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"topology": "v5e:2x4"},
        {"slots": "9"},
        {"weights": "int8"},
        {"dtype": "float32"},
        {"steps": 4},
        {"compile": True},
        {"table": PRESETS["2d"]},
        {"table": dataclasses.replace(PRESETS["1d"], reduce="exact")},
        {"table": dataclasses.replace(PRESETS["1d"], prefill=PRESETS["1d"])},
        {"table": dataclasses.replace(PRESETS["1d"], fallback={})},
    ],
)
def test_the_key_depends_on_all_that_decides(change):
    (cell,) = grid(M)
    assert dataclasses.replace(cell, **change).key != cell.key


def test_the_key_depends_on_ring_and_policy():
    keys = [grid(M, **given)[0].key for given in ({}, {"ring": "int8"}, {"context_policy": "roll"})]
    assert len(set(keys)) == 3


def test_a_context_that_the_slots_do_not_say_counts():
    contexts = (None, 2048, 4096, "auto")
    made = [grid(M, slots=["auto"], context=one)[0] for one in contexts]
    made += [grid(M, slots=["8"], context="auto")[0], grid(M, slots=["8"])[0]]
    assert len({one.key for one in made}) == 6
    assert [(one.as_json()["context"], one.as_json()["fit"]) for one in made] == [
        (None, "slots"),
        (2048, "slots"),
        (4096, "slots"),
        (None, "both"),
        (None, "context"),
        (None, "nothing"),
    ]
    assert grid(M, slots=[" auto "], context=2048)[0].key == made[1].key


def test_a_tables_name_does_not_count():
    (cell,) = grid(M)
    assert dataclasses.replace(cell, rules="mine").key == cell.key
    both = {"first": PRESETS["2d"], "again": PRESETS["2d"], "other": PRESETS["1d"]}
    assert [one.rules for one in grid(M, rules=both)] == ["first", "other"]


def test_the_key_is_that_of_earlier_sweeps():
    """A change here makes every file of records forgotten: then raise `record.VERSION`."""
    table = ShardingRules(axes={"batch": "data"}, fallback={})
    (cell,) = grid("m", ["2x4"], {"mine": table}, ["8x256"])
    assert cell.key == "9025d685e1dddfa1"


def test_a_table_says_the_same_however_it_was_written():
    short = ShardingRules(axes={"batch": "data", "mlp": ["model"]})
    long = ShardingRules(axes={"batch": ("data",), "mlp": "model", "vocab": None})
    assert table_data(short) == table_data(long)
    assert table_data(short)["axes"] == {"batch": ["data"], "mlp": ["model"]}


def test_files_are_called_by_their_stem_or_by_their_path(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text('reduce = "exact"\n')
    one, other = tmp_path / "a/mine.toml", tmp_path / "b/mine.toml"
    assert [*tables_of([one, "fsdp"])] == ["mine", "fsdp"]
    assert [*tables_of([one, other])] == [str(one), str(other)]
    assert tables_of([one])["mine"].reduce == "exact"
    assert [*tables_of({"own": PRESETS["2d"]})] == ["own"]
    assert [*tables_of(PRESETS["2d"])] == ["rules"]


def test_a_context_stands_in_the_slots():
    (cell,) = grid(M, slots=["8"], context=512)
    assert (cell.slots, cell.engine.classes[0].context) == ("8x512", 512)
    assert str(cell) == "1, 1d, 8x512"
    assert isinstance(cell, Cell)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"meshes": ["3by2"]}, MeshError, "mesh '3by2' cannot be read"),
        ({"rules": ["1e"]}, MeshError, "nearest: '1d'"),
        ({"rules": ["/nowhere/a.toml"]}, ConfigError, "cannot be read"),
        ({"rules": []}, ConfigError, "nearest: 1d"),
        ({"slots": ["8y2"]}, ConfigError, "slots is '8y2'"),
        ({"topology": "v5e:3x3"}, MeshError, "no slice"),
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"dtype": "float16"}, ConfigError, "dtype is 'float16'"),
        ({"ring": "int4"}, ConfigError, "ring is 'int4'"),
    ],
)
def test_what_no_cell_can_be_made_of_is_refused(given, error, says):
    with pytest.raises(error, match=says):
        grid(M, **given)
