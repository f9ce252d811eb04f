"""Where rules put a model: the report, one array explained, two tables beside each other."""

import dataclasses

import pytest

from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.experiment import diff, explain, report
from tpuinfer.sharding.presets import PRESETS

M = "llama-3.1-8b"


def test_a_report_is_rows_and_renders():
    found = report(M, "2x4", "1d", "v5e:2x4", "64x2048")
    by_name = {row.name: row for row in found}
    assert by_name["layers.*.mlp.up_proj.weight"].count == 32
    assert "model" in by_name["layers.*.mlp.up_proj.weight"].spec
    assert by_name["layers.*.ring.keys"].spec.startswith("(data, model")
    assert len(found) == len(found.rows) == len(found[:])
    assert "14336 over model=4" in str(found)
    assert found._repr_html_().count("<tr") == len(found) + 2
    assert found[0] in found


def test_without_a_slice_a_mesh_is_enough():
    one, other = (report(M, mesh) for mesh in ("1", "8"))
    assert sum(row.bytes_per_device for row in one) > 5 * sum(row.bytes_per_device for row in other)


def test_an_array_is_explained_dimension_by_dimension():
    found = explain("up_proj", M, "2x4")
    rows = {row[1]: row for row in found.rows}
    assert rows["mlp"][2:] == ("model", "model", "14336 over model=4")
    assert rows["embed"][2:] == ("-", "-", "replicated by the rules")
    text = str(found)
    assert "data=2 does not cut it: 2 devices hold the same" in text
    assert "embed -> data: would cut it: 4096 over data=2" in text
    assert "mlp -> data: would cut it: 14336 over model=4 x data=2" in text


def test_why_an_array_is_not_cut():
    found = explain("layers.3.self_attn.q_proj.weight", "smollm2-135m", "1x4", PRESETS["1d"])
    rows = {row[1]: row for row in found.rows}
    assert rows["heads"][3] == "-"
    assert "9 does not divide by model=4" in rows["heads"][4]


@pytest.mark.parametrize(
    ("param", "says"),
    [("upp_proj", "no arrays are called so; nearest: "), ("proj", "arrays are called so")],
)
def test_a_name_must_say_one_array(param, says):
    with pytest.raises(ConfigError, match=says):
        explain(param, M)


def test_a_diff_lists_what_moves():
    found = diff("1d", "fsdp", M, "2x4")
    rows = {row[0]: row for row in found.rows}
    name = "layers.*.mlp.up_proj.weight"
    assert found.header[2:] == ("1d", "fsdp", "MB 1d", "MB fsdp", "MB sent")
    assert rows[name][6] == "0.00"
    (back,) = (row for row in diff("fsdp", "1d", M, "2x4").rows if row[0] == name)
    assert back[6] == rows[name][5]
    assert float(rows[name][4]) == pytest.approx(2 * float(rows[name][5]), rel=0.01)
    assert "used as" in rows[name][3]
    assert not any("ring" in one for one in rows)
    assert found.notes[0].startswith("all arrays: ")


def test_prefill_with_rules_of_its_own_says_what_travels():
    apart = dataclasses.replace(PRESETS["2d"], prefill=PRESETS["1d"])
    assert "Prefill has rules of its own: each call sends a device" in str(report(M, "2x4", apart))
    name = "layers.*.mlp.up_proj.weight"
    (row,) = (row for row in diff("2d", apart, M, "2x4").rows if row[0] == name)
    assert "prefill" in row[3]


def test_equal_tables_move_nothing():
    found = diff("1d", PRESETS["1d"], M, "2x4")
    assert (list(found.rows), found.notes[0].split(";")[0]) == ([], "nothing moves")


def test_columns_of_one_name_are_told_apart():
    for one, other in ((PRESETS["1d"], PRESETS["fsdp"]), ("1d", "1d")):
        assert diff(one, other, M, "2x4").header[2:6] == (
            "first",
            "second",
            "MB first",
            "MB second",
        )
    assert diff("1d", PRESETS["fsdp"], M, "2x4").header[2:4] == ("1d", "rules")


@pytest.mark.parametrize(("mesh", "slices"), [("all", "v5e:2x4"), ("8", "v5e:2x4,v6e:2x4")])
def test_a_report_is_of_one_mesh_and_one_slice(mesh, slices):
    with pytest.raises(ConfigError, match=r"one mesh and one slice; nearest: mesh \d"):
        report(M, mesh, topology=slices)
    with pytest.raises(ConfigError, match="one mesh and one slice"):
        explain("up_proj", M, mesh, topology=slices)


def test_what_cannot_be_is_refused():
    with pytest.raises(MeshError, match="has 8"):
        report(M, "4x4", "1d", "v5e:2x4")
    with pytest.raises(MeshError, match="nearest: '1d'"):
        diff("1d", "1e", M)
