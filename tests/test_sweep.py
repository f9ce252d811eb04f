"""`python -m tpuinfer.sweep` from the outside."""

import json

import doors
import pytest

EIGHT_B = ("--model", "llama-3.1-8b", "--topology", "v5e:2x4", "--slots", "64x2048")


@pytest.fixture
def out(tmp_path):
    return ("--out", str(tmp_path / "sweep.jsonl"))


def test_a_grid_is_planned_printed_and_drawn(tmp_path, out):
    mine = tmp_path / "mine.toml"
    mine.write_text('[axes]\nvocab = ""\n')
    flags = (*EIGHT_B, "--meshes", "8,2x4", "--rules", f"1d,{mine}", *out)
    made = doors.run("sweep", *flags, "--plots", str(tmp_path / "sweep"))
    assert made.code == 0
    lines = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [(one["cell"]["rules"], one["status"]) for one in lines] == [
        ("1d", "ok"),
        ("mine", "ok"),
        ("1d", "ok"),
        ("mine", "ok"),
    ]
    rows = made.out.splitlines()
    assert [row.lstrip("* ").split()[:2] for row in rows[1:5]] == [
        ["8", "1d"],
        ["8", "mine"],
        ["2x4", "1d"],
        ["2x4", "mine"],
    ]
    assert rows[-1] == f"drawn: {tmp_path / 'sweep.png'}"
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert [line.split()[0] for line in made.err.splitlines()] == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]
    again = doors.run("sweep", *flags)
    assert (again.code, again.out) == (0, made.out.removesuffix(rows[-1] + "\n"))
    assert again.err == f"4 of 4 cells are in {out[1]} already\n"


def test_named_axes_and_several_slots(out):
    meshes = "data=2,model=4;8"
    flags = (*EIGHT_B[:4], "--meshes", meshes, "--slots", "64x2048;8x2048,4x8192", *out)
    made = doors.run("sweep", *flags, "--steps", "2", "--weights", "int8", "--ring", "int8")
    assert made.code == 0
    rows = [row.lstrip("* ").split() for row in made.out.splitlines()[1:5]]
    assert [row[:3] for row in rows] == [
        ["2x4", "1d", "64x2048"],
        ["2x4", "1d", "8x2048,4x8192"],
        ["8", "1d", "64x2048"],
        ["8", "1d", "8x2048,4x8192"],
    ]
    assert "weights int8, ring int8" in made.out


def test_cells_that_cannot_be_are_records_all_the_same(out):
    made = doors.run("sweep", *EIGHT_B, "--meshes", "8,3", *out)
    assert made.code == 0
    assert "3, 1d, 64x2048: refused: mesh 3 is of 3 devices, v5e:2x4 has 8" in made.out


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--meshes", "3by2"), 3, "mesh '3by2' cannot be read"),
        (("--meshes", "data=2,pipe=2"), 3, "'pipe' is not a mesh axis"),
        (("--meshes", ","), 2, "',' names nothing"),
        (("--mesh", "8"), 2, "--mesh=8 is one mesh; nearest: --meshes 8"),
        (("--rules", "1e"), 3, "nearest: '1d'"),
        (("--rules", "/nowhere/a.toml"), 2, "/nowhere/a.toml: cannot be read"),
        (("--rules", "BAD"), 3, "no logical axis; nearest: 'heads'"),
        (("--slots", "8y"), 2, "slots is '8y'"),
        (("--topology", "v5x:2x4"), 3, "chip is 'v5x'"),
        (("--model", "lama-3"), 2, "nearest: llama-3"),
        (("--out", "/nowhere/sweep.jsonl"), 2, "/nowhere: is no folder"),
        (("--out", "BAD"), 2, "is no record of a sweep; give another --out"),
        (("--plots", "/nowhere/a"), 2, "/nowhere is no folder"),
        (("--verify",), 2, "--verify means nothing to a sweep"),
        (("--topology", "h100:8", "--compile"), 2, "nearest: leave out --compile"),
    ],
)
def test_wrong_input_is_one_line_with_the_nearest_that_works(tmp_path, out, flags, code, says):
    bad = tmp_path / "bad.toml"
    bad.write_text('[axes]\nhead = "model"\n')
    given = [str(bad) if one == "BAD" else one for one in flags]
    made = doors.run("sweep", *EIGHT_B, *out, *given)
    assert (made.code, made.out, made.err.count("\n")) == (code, "", 1)
    assert says in made.err


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), ("v5e:2x4", {"data": 2, "model": 4})),
        (("--meshes", "8"), ("v5e:2x4", {"data": 1, "model": 8})),
        (("--topology", "v6e:2x4"), ("v6e:2x4", {"data": 2, "model": 4})),
    ],
)
def test_a_config_has_a_slice_and_a_mesh_that_flags_replace(tmp_path, out, flags, wanted):
    config = tmp_path / "a.toml"
    config.write_text(
        '[model]\nmodel = "llama-3.1-8b"\n[mesh]\nmesh = "2x4"\ntopology = "v5e:2x4"\n'
        '[engine]\nslots = "64x2048"\n'
    )
    made = doors.run("sweep", "--config", str(config), *flags, *out)
    assert made.code == 0, made.err
    (line,) = (json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines())
    assert (line["cell"]["topology"], line["cell"]["mesh"]) == wanted
    assert (line["status"], line["where"]["how"]) == ("ok", "reckoned")


def test_compiling_goes_with_a_topology(out):
    made = doors.run("sweep", "--model", "llama-3.1-8b", "--compile", *out)
    assert (made.code, made.err.count("\n")) == (2, 1)
    assert "compile is set, and there is no topology" in made.err
