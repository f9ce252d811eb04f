"""A batch of rows as a table, from real journals that an answerer by hand has filled."""

import asyncio
import csv
import json

import pytest
from answering import ByHand

from tpuinfer.errors import ConfigError
from tpuinfer.offline import table_output
from tpuinfer.offline.batch import Batch, Job
from tpuinfer.offline.run import Pace
from tpuinfer.offline.source import Form
from tpuinfer.offline.table_output import check_own, is_table, write_table
from tpuinfer.offline.task import BatchError, Outcome

USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


class Echo(ByHand):
    """Answers a prompt in capitals, twice where it asks for two; 400 where it has a question."""

    async def answer(self, url, body, stamp):
        asked = json.loads(body)
        await asyncio.sleep(0)
        if url.endswith("embeddings"):
            data = [{"index": 0, "embedding": [0.5, float(len(asked["input"]))]}]
            return Outcome(200, json.dumps({"data": data, "usage": USAGE}).encode())
        prompt = asked["prompt"]
        if "?" in prompt:
            return Outcome(400, b'{"error":{"message":"no questions","code":null}}')
        choices = [
            {"index": index, "text": prompt.upper(), "finish_reason": "stop"}
            for index in range(asked.get("n", 1))
        ]
        return Outcome(200, json.dumps({"choices": choices, "usage": USAGE}).encode())


@pytest.fixture
def made(tmp_path):
    """(input file, output name, form) -> the table that comes of it, all lines answered."""

    def make(given, name, form):
        output = tmp_path / name
        job = Job([str(given)], f"{output}.journal.jsonl", form)
        batch = Batch.open(job, lambda: {"name": "m"})
        asyncio.run(batch.run(Echo(width=3), stop=asyncio.Event(), pace=Pace()))
        write_table(str(output), batch.source, batch.ledger)
        batch.close()
        return output

    return make


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_every_row_is_in_its_place_with_what_came_of_it(made, tmp_path):
    given = tmp_path / "in.csv"
    given.write_text('id,text\n1,"one,\nand"\n2,why?\n3,\n4,four\n', "utf-8")
    table = rows(made(given, "out.csv", Form(template="say {text}")))
    assert table[0] == ["id", "text", "output", "finish_reason", "error"]
    assert table[1] == ["1", "one,\nand", "SAY ONE,\nAND", "stop", ""]
    assert table[2] == ["2", "why?", "", "", "no questions"]
    assert table[4] == ["4", "four", "SAY FOUR", "stop", ""]
    assert len(table) == 5


def test_columns_of_the_input_keep_their_names(made, tmp_path):
    given = tmp_path / "in.csv"
    given.write_text("output,text\nold,a\n", "utf-8")
    table = rows(made(given, "out.csv", Form(prompt_field="text")))
    assert table == [
        ["output", "text", "tpuinfer_output", "finish_reason", "error"],
        ["old", "a", "A", "stop", ""],
    ]


def test_a_chain_of_batches_keeps_every_column(made, tmp_path):
    given = tmp_path / "in.csv"
    given.write_text("text\na\n", "utf-8")
    first = made(given, "first.csv", Form(prompt_field="text"))
    second = made(first, "second.csv", Form(template="{output}b"))
    third = rows(made(second, "third.csv", Form(template="{tpuinfer_output}c")))
    added = ("output", "finish_reason", "error")
    names = [f"{before}{name}" for before in ("", "tpuinfer_") for name in added]
    assert third == [
        ["text", *names, *(f"tpuinfer_{name}_2" for name in added)],
        ["a", "A", "stop", "", "AB", "stop", "", "ABC", "stop", ""],
    ]


def test_objects_of_different_fields_and_several_answers(made, tmp_path):
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "a", "deep": {"b": 1}}\n{"text": "b", "late": 2.5}\n', "utf-8")
    table = rows(made(given, "out.csv", Form(prompt_field="text", defaults={"n": 2})))
    assert table == [
        ["text", "deep", "late", "output", "finish_reason", "error"],
        ["a", '{"b":1}', "", '["A","A"]', '["stop","stop"]', ""],
        ["b", "", "2.5", '["B","B"]', '["stop","stop"]', ""],
    ]


def test_parquet_keeps_the_kinds_of_columns(made, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    given = tmp_path / "in.jsonl"
    lines = [
        {"text": "a", "count": 1, "share": 1, "good": True, "mixed": 1, "deep": [1], "none": None},
        {"text": "b?", "count": None, "share": 0.5, "good": False, "mixed": "x", "deep": {}},
    ]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    table = parquet.read_table(made(given, "out.parquet", Form(prompt_field="text")))
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "text": "string",
        "count": "int64",
        "share": "double",
        "good": "bool",
        "mixed": "string",
        "deep": "string",
        "none": "string",
        "output": "string",
        "finish_reason": "string",
        "error": "string",
    }
    first, second = table.to_pylist()
    assert (first["output"], first["share"], first["deep"]) == ("A", 1.0, "[1]")
    assert (second["output"], second["error"], second["count"]) == (None, "no questions", None)


def test_parquet_holds_vectors_in_groups(made, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table_output, "_GROUP_ROWS", 4)
    given = tmp_path / "in.jsonl"
    given.write_text("".join(f'{{"text": "{"x" * n}"}}\n' for n in range(1, 12)), "utf-8")
    form = Form(prompt_field="text", task="embedding")
    table = parquet.read_table(made(given, "out.parquet", form))
    assert [row["output"] for row in table.to_pylist()] == [[0.5, float(n)] for n in range(1, 12)]


def test_a_table_that_cannot_be_written_leaves_the_old_one(made, tmp_path, monkeypatch):
    given, output = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("text\na\n", "utf-8")
    output.write_text("old", "utf-8")

    def full(path, *_):
        path.write_text("half", "utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_output, "_write_csv", full)
    with pytest.raises(BatchError, match=r"out\.csv: cannot be written \(No space left on device"):
        made(given, "out.csv", Form(prompt_field="text"))
    assert output.read_text("utf-8") == "old"
    assert list(tmp_path.glob("*.new")) == []


def test_without_pyarrow_another_name_is_asked_for(made, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    given = tmp_path / "in.csv"
    given.write_text("text\na\n", "utf-8")
    monkeypatch.setattr(table_output.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"tpuinfer\[parquet\]"):
        made(given, "out.parquet", Form(prompt_field="text"))


def test_which_outputs_are_tables():
    assert is_table("a/out.csv")
    assert is_table("out.PARQUET")
    assert not is_table("out.jsonl")
    assert not is_table("-")
    with pytest.raises(BatchError, match="a local disk"):
        is_table("gs://bucket/out.csv")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("a/out.tsv", "a/out.csv"),
        ("out.XLSX", "out.csv"),
        ("out.pq", "out.parquet"),
        ("out.jsonl.gz", "out.jsonl"),
        ("out.csv.zst", "out.csv"),
        ("gs://bucket/out.gz", "gs://bucket/out.jsonl"),
    ],
)
def test_kinds_that_are_not_written_are_refused_by_name(name, nearest):
    with pytest.raises(ConfigError) as error:
        is_table(name)
    assert str(error.value).startswith(f"output is {name!r}: ")
    assert str(error.value).endswith(f"only .csv, .parquet, .jsonl; nearest: {nearest}")


def test_a_table_of_others_is_no_output_of_a_new_batch(tmp_path):
    table, manifest = tmp_path / "out.csv", tmp_path / "m.json"
    check_own(str(table), str(manifest))
    table.touch()
    with pytest.raises(BatchError, match=r"out\.csv: is there, and this batch, which is new"):
        check_own(str(table), str(manifest))
    manifest.touch()
    check_own(str(table), str(manifest))
