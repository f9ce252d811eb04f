"""Rows of CSV, TSV and Parquet."""

import builtins
import csv
import datetime
import decimal
import io

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpuinfer.offline import reading, tables
from tpuinfer.offline.tables import csv_fields, csv_rows, parquet_fields, parquet_rows
from tpuinfer.offline.task import BatchError, LineError

HEADER = b"id,text\n"


def plain(rows):
    return [(n, row.code if isinstance(row, LineError) else row) for n, row in rows]


def cells(data: bytes, delimiter=","):
    return plain(csv_rows(io.BytesIO(data), "in.csv", delimiter))


CELLS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\0\ufeff"), max_size=12
)


@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=5),
    st.sampled_from(",\t"),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_csv_writes_is_read_again(rows, delimiter, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows([["a", "b c"], *rows])
    found = cells(text.getvalue().encode(), delimiter)
    assert [row for _, row in found] == [dict(zip(("a", "b c"), row, strict=True)) for row in rows]


def test_places_are_lines_of_the_file():
    data = b'\xef\xbb\xbf\nid,text\r\n1,a\r\n\r\n2,"b\nstill ""b"""\n3,c'
    assert cells(data) == [
        (3, {"id": "1", "text": "a"}),
        (5, {"id": "2", "text": 'b\nstill "b"'}),
        (7, {"id": "3", "text": "c"}),
    ]
    assert csv_fields(io.BytesIO(data), "in.csv", ",") == ["id", "text"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b"1", "invalid_csv"),
        (b"1,2,3", "invalid_csv"),
        (b'"1"2,3', "invalid_csv"),
        (b"1,\xff", "invalid_unicode"),
        (b'1,"a\n\xff\n"', "invalid_unicode"),
    ],
)
def test_one_bad_row_is_one_error(row, code):
    after = 3 + row.count(b"\n")
    assert cells(HEADER + row + b"\n2,b\n") == [(2, code), (after, {"id": "2", "text": "b"})]


def test_the_cells_of_a_bad_row_are_counted():
    [(_, row)] = csv_rows(io.BytesIO(HEADER + b"1,2,3"), "in.csv", ",")
    assert str(row) == "the row has 3 cells: the header names 2 columns"


def test_a_quote_left_open_in_the_last_line_is_an_error_of_it():
    assert cells(HEADER + b'1,a\n2,"b') == [(2, {"id": "1", "text": "a"}), (3, "invalid_csv")]


def test_a_quote_left_open_over_rows_is_refused():
    with pytest.raises(BatchError, match=r"in.csv:3: a quote that is opened here is never closed"):
        cells(HEADER + b'1,a\n2,"b\n3,c\n4,d\n')


@pytest.mark.parametrize("row", [b'1,"' + b"x\n" * 60, b"1," + b"x" * 200])
def test_a_row_that_is_too_long_is_refused(monkeypatch, row):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    with pytest.raises(BatchError, match=r"in.csv:3: the row that begins here is longer than"):
        cells(HEADER + b"0,a\n" + row + b"\n2,b\n")


def test_a_large_cell_is_read():
    text = "x" * 1_000_000
    assert cells(HEADER + b"1," + text.encode()) == [(2, {"id": "1", "text": text})]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has no header row"),
        (b"\n\n", "has no header row"),
        (b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        (b'"a"b,c\n', "in.csv:1: the header is not CSV"),
        (b"a,\xff\n", "in.csv:1: the header is not UTF-8"),
        ("a,b\n".encode("utf-16"), "in.csv: is UTF-16"),
    ],
)
def test_a_header_that_cannot_be_one_is_refused(data, words):
    for read in (csv_fields, lambda *args: list(csv_rows(*args))):
        with pytest.raises(BatchError) as error:
            read(io.BytesIO(data), "in.csv", ",")
        assert words in str(error.value)


def parquet(columns):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=100)
    file.seek(0)
    return file


def test_parquet_values_are_json_values():
    pa = pytest.importorskip("pyarrow")
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 600)
    columns = {
        "text": pa.array(["é"]),
        "int": pa.array([2**64 - 1], pa.uint64()),
        "nan": pa.array([float("nan")]),
        "half": pa.array([0.5], pa.float32()),
        "no": pa.array([None], pa.string()),
        "yes": pa.array([True]),
        "at": pa.array([at]),
        "zone": pa.array([at], pa.timestamp("ms", "UTC")),
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
        "day": pa.array([at.date()]),
        "hour": pa.array([at.time()]),
        "took": pa.array([datetime.timedelta(seconds=61)]),
        "price": pa.array([decimal.Decimal("1.10")]),
        "kind": pa.array(["a"]).dictionary_encode(),
        "deep": pa.array([{"list": [decimal.Decimal("2.50"), None], "day": at.date()}]),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
    }
    file = parquet(columns)
    assert parquet_fields(file, "in.parquet") == list(columns)
    [(number, row)] = parquet_rows(file, "in.parquet")
    assert number == 1
    assert row == {
        "text": "é",
        "int": 2**64 - 1,
        "nan": None,
        "half": 0.5,
        "no": None,
        "yes": True,
        "at": "2026-01-02T03:04:05.000600",
        "zone": "2026-01-02T03:04:05+00:00",
        "nanoseconds": "1970-01-01 00:00:00.000000001",
        "day": "2026-01-02",
        "hour": "03:04:05.000600",
        "took": "0:01:01",
        "price": "1.10",
        "kind": "a",
        "deep": {"list": ["2.50", None], "day": "2026-01-02"},
        "map": [["k", 1]],
    }
    assert orjson.loads(orjson.dumps(row)) == row


def test_parquet_rows_come_in_order_over_batches_and_row_groups():
    file = parquet({"n": list(range(700))})
    assert list(parquet_rows(file, "in.parquet")) == [(n + 1, {"n": n}) for n in range(700)]


def test_infinity_is_an_error_of_its_row():
    file = parquet({"a": [1.0, float("inf")]})
    assert plain(parquet_rows(file, "in.parquet")) == [(1, {"a": 1.0}), (2, "invalid_value")]


def test_parquet_text_that_is_not_utf8_is_an_error_of_its_row():
    pa = pytest.importorskip("pyarrow")
    raw = pa.array([b"abc", b"\xff\xfe", b"def"])
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    for column in (text, text.dictionary_encode(), pa.StructArray.from_arrays([text], ["in"])):
        [first, (number, bad), last] = parquet_rows(parquet({"t": column}), "in.parquet")
        assert number == 2
        assert str(bad) == "column 't' holds text that is not UTF-8"
        assert (bad.code, bad.param) == ("invalid_unicode", "t")
        assert [row["t"] for _, row in (first, last)] in (
            ["abc", "def"],
            [{"in": "abc"}, {"in": "def"}],
        )


def test_bytes_are_refused_by_name_however_deep():
    for value in (b"x", [b"x"], {"in": [b"x"]}):
        file = parquet({"text": ["a"], "raw": [value]})
        with pytest.raises(BatchError, match="column 'raw' holds bytes"):
            parquet_fields(file, "in.parquet")


def test_two_columns_of_one_name_are_refused():
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(table, file)
    with pytest.raises(BatchError, match="two columns are named 'a'"):
        parquet_fields(file, "in.parquet")


def test_what_is_no_parquet_is_refused():
    pytest.importorskip("pyarrow")
    for data in (b"", b"id,text\n1,a\n", b"PAR1" + bytes(100)):
        with pytest.raises(BatchError, match=r"in.parquet: is no Parquet file"):
            parquet_fields(io.BytesIO(data), "in.parquet")


def test_a_damaged_parquet_file_is_one_line():
    data = bytearray(parquet({"n": list(range(100_000))}).getvalue())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    with pytest.raises(BatchError, match=r"in.parquet: cannot be read after row \d+ \("):
        list(parquet_rows(io.BytesIO(data), "in.parquet"))


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BatchError, match=r"pip install tpuinfer\[parquet\]"):
        parquet_fields(io.BytesIO(), "in.parquet")
