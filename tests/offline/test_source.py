"""All lines of all inputs as tasks, the same each time."""

import csv
import gzip
import hashlib
import io
import json
import sys

import orjson
import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.offline.index import DuplicateError, Index
from tpuinfer.offline.source import Digest, Form, open_source
from tpuinfer.offline.task import BatchError


def line(custom_id, prompt="x"):
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt},
        }
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tasks_go_on_over_files_and_positions_skip_blank_lines(folder):
    (folder / "a.jsonl").write_text(f"{line('a')}\n\n{line('b')}\n")
    (folder / "b.ndjson").write_text(f"\ufeff{line('c')}\r\nnot json\r\n{line('d')}")
    source = open_source(["*"], Form())
    tasks = list(source.tasks())
    assert [(task.position, task.where, task.custom_id) for task in tasks] == [
        (0, "a.jsonl:1", "a"),
        (1, "a.jsonl:3", "b"),
        (2, "b.ndjson:1", "c"),
        (3, "b.ndjson:2", None),
        (4, "b.ndjson:3", "d"),
    ]
    assert [task.error is not None for task in tasks] == [False, False, False, True, False]
    assert source.names == source.paths == ("a.jsonl", "b.ndjson")


def test_each_pass_begins_again_also_while_another_is_under_way(folder):
    (folder / "a.jsonl").write_text("\n".join(line(str(n)) for n in range(50)))
    source = open_source(["a.jsonl"], Form(defaults={"seed": 1}))
    first = source.tasks()
    begun = [next(first) for _ in range(10)]
    assert list(source.tasks()) == [*begun, *first]


def test_digests_are_of_each_file(folder):
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(line(name))
    assert open_source(["*"], Form()).digests() == [
        Digest(name, len(line(name)), hashlib.sha256(line(name).encode()).hexdigest())
        for name in ("a.jsonl", "b.jsonl")
    ]


ROWS = [{"id": "1", "text": "a {cat}"}, {"id": "2", "text": 'two\nlines, "quoted"'}]


def write_rows(folder, kind):
    path = folder / f"rows{kind}"
    if kind.startswith(".jsonl"):
        data = "\n".join(map(json.dumps, ROWS)).encode()
    elif kind == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(ROWS), path)
        return path
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["id", "text"], delimiter="\t" if "tsv" in kind else ",")
        writer.writeheader()
        writer.writerows(ROWS)
        data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".parquet"])
def test_rows_are_the_same_from_every_kind_of_file(folder, kind):
    path = write_rows(folder, kind)
    source = open_source([str(path)], Form(template="<{text}>", id_field="id"))
    for _ in range(2):
        tasks = list(source.tasks())
        assert [task.row for task in tasks] == ROWS
        assert [task.custom_id for task in tasks] == ["1", "2"]
        assert [orjson.loads(task.body) for task in tasks] == [
            {"prompt": f"<{row['text']}>"} for row in ROWS
        ]
        assert [task.where.partition(":")[0] for task in tasks] == [f"rows{kind}"] * 2


def test_rows_are_numbered_over_all_files(folder):
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("text\nx\n\ny\n")
    tasks = list(open_source(["*.csv"], Form("text")).tasks())
    assert [(task.custom_id, task.where) for task in tasks] == [
        ("row-1", "a.csv:2"),
        ("row-2", "a.csv:4"),
        ("row-3", "b.csv:2"),
        ("row-4", "b.csv:4"),
    ]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_a_table_without_the_field_is_refused_when_it_is_opened(folder, kind):
    path = write_rows(folder, kind)
    with pytest.raises(ConfigError, match=r"has no field 'txt'; did you mean 'text'\?"):
        open_source([str(path)], Form("txt"))


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_table_needs_a_form_of_rows(folder, kind):
    path = write_rows(folder, kind)
    with pytest.raises(BatchError, match=r"is a table of 'id', 'text': say what the prompt is"):
        open_source([str(path)], Form())


def test_a_row_of_json_without_the_field_is_an_error_of_its_own(folder):
    (folder / "a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n{"text": null}\n')
    tasks = list(open_source(["a.jsonl"], Form("text")).tasks())
    assert [task.error and task.error.param for task in tasks] == [None, "text", "text"]
    assert [task.custom_id for task in tasks] == ["row-1", "row-2", "row-3"]


def test_stdin_is_read_more_than_once(monkeypatch):
    data = f"{line('a')}\n{line('b')}".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    source = open_source(["-"], Form())
    for _ in range(2):
        assert [task.where for task in source.tasks()] == ["stdin:1", "stdin:2"]
    assert [digest.name for digest in source.digests()] == ["stdin"]


def test_an_input_that_is_edited_between_two_passes_is_refused(folder):
    (folder / "a.jsonl").write_text(line("a"))
    source = open_source(["a.jsonl"], Form())
    assert len(list(source.tasks())) == 1
    (folder / "a.jsonl").write_text(line("a") + "\n" + line("b"))
    with pytest.raises(BatchError, match=r"a.jsonl: has changed while it was read"):
        list(source.tasks())


def test_the_index_names_the_places_of_duplicates(folder):
    (folder / "a.jsonl").write_text(f"{line('a')}\n\n{line('b')}\n")
    (folder / "b.jsonl").write_text(f"\n{line('c')}\n{line('b')}\n")
    with pytest.raises(DuplicateError, match=r"'b' in a.jsonl:3 and b.jsonl:3") as error:
        Index.build(open_source(["*.jsonl"], Form()))
    assert error.value.line == 3


def test_an_unnamed_copy_is_given_back(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    source = open_source(["-"], Form())
    del source
    (folder / "a.jsonl").write_text("")
    assert list(open_source(["a.jsonl"], Form()).tasks()) == []
