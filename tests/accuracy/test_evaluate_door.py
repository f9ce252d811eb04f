import json

import doors
import pytest
import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "text.txt").write_text("The rain fell in torrents, except at intervals. " * 4)
    path = tiny_model.write_checkpoint(folder / "tiny")
    return (
        *("--model", str(path), "--cache-dir", str(folder / "cache"), "--dtype", "float32"),
        *("--text", str(folder / "text.txt"), "--window", "64", "--chunk", "32"),
    )


def test_schemes_are_rows_and_the_reference_is_what_the_weights_are_worth(model):
    done = doors.run("evaluate", *model, "--schemes", "int8 none/int8 int4:32/fp8", "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    rows = [(row["weights"], row["ring"]) for row in said["rows"]]
    assert rows == [("int8", "auto"), ("none", "int8"), ("int4:32", "fp8")]
    assert (said["reference"]["weights"], said["reference"]["ring"]) == ("none", "auto")
    divergences = [row["divergence"] for row in said["rows"]]
    assert 0 < max(divergences[:2]) < divergences[2]


def test_one_model_alone_is_one_row(model):
    done = doors.run("evaluate", *model)
    assert (done.code, done.err) == (0, "")
    *_, names, row = done.out.splitlines()
    assert names.split() == ["weights", "ring", "weights", "MB", "ring", "B/token", "perplexity"]
    assert row.split()[:2] == ["auto", "auto"]


def test_a_mesh_against_another(model):
    done = doors.run("evaluate", *model, "--mesh=2", "--against-mesh=1", "--tokens=40", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["reference"]["mesh"], said["rows"][0]["mesh"]) == ("1", "2")
    assert said["rows"][0]["divergence"] < 1e-7


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--schemes=int8", "--weights=int8"), ("--schemes is given",)),
        (("--schemes=int8/int4",), ("'int4'", "bfloat16", "fp8")),
        (("--schemes=int9",), ("'int9'", "nearest: int8")),
        (("--schemes= ",), ("schemes is empty",)),
        (("--tokens=-1",), ("tokens is -1", "nearest: 0")),
        (("--chunk=0",), ("chunk is 0", "nearest: 1")),
        (("--slots=4",), ("--slots is given",)),
        (("--text=/no/such/file",), ("No such file",)),
        (("--against=/no/such/model",), ("/no/such/model",)),
    ],
)
def test_wrong_command_lines_are_one_line(model, flags, parts):
    done = doors.run("evaluate", *model, *flags)
    (line,) = done.err.splitlines()
    assert done.code > 0
    assert done.out == ""
    assert line.startswith("tpuinfer: ")
    assert all(part in line for part in parts), line
