"""Lines of bytes and JSON: long, broken, oddly encoded."""

import io
import json
import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpuinfer.offline import reading
from tpuinfer.offline.reading import byte_lines, json_rows
from tpuinfer.offline.task import BatchError, LineError


def rows(data: bytes):
    """What `json_rows` gives, an error as its code."""
    return [
        (number, row.code if isinstance(row, LineError) else row)
        for number, row in json_rows(io.BytesIO(data), "in.jsonl")
    ]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)


@given(st.lists(OBJECTS, max_size=4), st.sampled_from(["\n", "\r\n", "\n\n \n"]), st.booleans())
def test_any_objects_are_read_as_they_were_written(objects, end, ascii_only):
    text = end.join(json.dumps(one, ensure_ascii=ascii_only) for one in objects)
    assert [row for _, row in rows(text.encode())] == objects


def test_blank_lines_are_passed_over_and_counted():
    assert rows(b'\n{"a":1}\n  \t\r\n{"a":2}') == [(2, {"a": 1}), (4, {"a": 2})]
    assert rows(b"") == rows(b"\n\n") == rows(b"\xef\xbb\xbf") == []


@pytest.mark.parametrize(
    "text", ['[{"a":1},{"a":2}]', '\n [\n  {"a": 1}\n]\n', "\ufeff[\r\n{}\r\n]"]
)
def test_an_array_of_objects_is_refused_with_what_takes_it_apart(text):
    with pytest.raises(BatchError, match=r"in.jsonl: is one JSON array; .* jq -c '\.\[\]'"):
        rows(text.encode())


def test_a_line_that_is_an_array_is_one_error():
    assert rows(b'["a"]\n{"a":1}\n[{}]\n') == [
        (1, "invalid_type"),
        (2, {"a": 1}),
        (3, "invalid_type"),
    ]


def test_a_byte_order_mark_is_taken_off_the_first_line_only():
    assert rows(b'\xef\xbb\xbf{"a":1}\r\n') == [(1, {"a": 1})]
    assert rows(b'{}\n\xef\xbb\xbf{"a":1}\n') == [(1, {}), (2, "invalid_json")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused(encoding):
    marked = "\ufeff" if encoding != "utf-16" else ""
    with pytest.raises(BatchError, match=r"in.jsonl: is UTF-16; write it as UTF-8"):
        rows((marked + '{"a":1}\n').encode(encoding))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"a":', "invalid_json"),
        (b'{"a":1}{"a":2}', "invalid_json"),
        (b'{"a":"\xff"}', "invalid_json"),
        (b'{"a":"\\ud800"}', "invalid_json"),
        (b'{"a":NaN}', "invalid_json"),
        (b'{"a":1e999}', "invalid_json"),
        (b"\x00\x00", "invalid_json"),
        (b'[{"a":1}]', "invalid_type"),
        (b'"a"', "invalid_type"),
        (b"null", "invalid_type"),
        (b"1", "invalid_type"),
        (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
        (b"[" * 2000, "invalid_json"),
    ],
)
def test_one_bad_line_is_one_error(line, code):
    assert rows(b'{"a":1}\n' + line + b'\n{"a":2}\n') == [(1, {"a": 1}), (2, code), (3, {"a": 2})]


def test_an_error_of_json_names_the_character():
    [(_, row)] = json_rows(io.BytesIO(b'{"a": x}'), "in.jsonl")
    assert str(row).startswith("the line is not JSON: ")
    assert str(row).endswith(" (character 7)")
    assert "line 1" not in str(row)


def test_what_passes_for_not_too_deep_can_be_written():
    for depth in range(230, 260):
        [(_, row)] = rows(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        if row != "too_deep":
            orjson.dumps({"row": {"in": [row]}})


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        ("18446744073709551615", True),
        ("18446744073709551616", False),
        ("-9223372036854775808", True),
        ("-9223372036854775809", False),
        ("1" * 300, False),
        ("0.12345678901234567890", True),
        ("1.2345678901234567890123e5", True),
        ('"12345678901234567890123"', True),
        (r'"\"12345678901234567890123"', True),
    ],
)
def test_an_integer_that_would_be_rounded_is_an_error(number, fits):
    line = f'{{"before": "{"9" * 30}", "id": {number}, "after": [1]}}'
    [(_, row)] = json_rows(io.BytesIO(line.encode()), "in.jsonl")
    if fits:
        assert row["id"] == json.loads(number)
    else:
        assert row.code == "invalid_json"
        assert f"the number {number[:20]}" in str(row)


def test_a_line_that_is_too_long_is_an_error_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 20)
    long = b'{"a":"' + b"x" * 100_000 + b'"}\n'
    fits = b'{"a":"xxxxxxxxxxx"}\n'
    assert len(fits) == 20
    assert rows(long + fits + long[:-1]) == [
        (1, "body_too_large"),
        (2, {"a": "xxxxxxxxxxx"}),
        (3, "body_too_large"),
    ]


def test_a_long_line_is_never_in_memory_whole():
    class Endless(io.RawIOBase):
        """200 MiB in one line."""

        left = 200 * 2**20

        def readable(self):
            return True

        def readinto(self, buffer):
            size = min(self.left, len(buffer))
            self.left -= size
            buffer[:size] = bytes(size)
            return size

    tracemalloc.start()
    try:
        assert list(byte_lines(io.BufferedReader(Endless(), 2**20), "in.jsonl")) == [None]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * reading.MAX_LINE_BYTES
