"""Lines of bytes and of JSON, however long, broken or oddly encoded, in bounded memory."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from tpuinfer.offline.task import BatchError, LineError

MAX_LINE_BYTES = 32 * 2**20
"""What a request's body may have over HTTP, too."""

_SKIPPED_AT_ONCE = 2**16
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_WIDE = b"0" * 19
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?')
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
"""How a file of one JSON array of objects begins."""

_MOST_DIGITS = 20
_MOST_OPEN = 64
"""Brackets that a line may have before it is asked whether it is too deep to be written again."""

Fields = dict[str, Any]


def byte_lines(file: BinaryIO, path: str) -> Iterator[bytes | None]:
    r"""Each line with its end, without the file's byte order mark.

    None stands for a line longer than `MAX_LINE_BYTES`, which is passed over in small pieces.

    Raises:
      BatchError: the file is UTF-16.
    """
    line = file.readline(MAX_LINE_BYTES + 1)
    if line.startswith(_UTF_16):
        raise BatchError(f"{path}: is UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8")
    line = line.removeprefix(_BOM) or file.readline(MAX_LINE_BYTES + 1)
    while line:
        if len(line) <= MAX_LINE_BYTES:
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(_SKIPPED_AT_ONCE)
            yield None
        line = file.readline(MAX_LINE_BYTES + 1)


def json_rows(file: BinaryIO, path: str) -> Iterator[tuple[int, Fields | LineError]]:
    """(line number from 1, the object in the line or what is wrong with it).

    Blank lines are passed over, but counted.

    Raises:
      BatchError: the file is UTF-16, or one array of objects.
    """
    begun = False
    for number, line in enumerate(byte_lines(file, path), 1):
        if line is None:
            yield number, too_long("the line")
        elif not line.isspace():
            if not begun and _ARRAY.match(line):
                raise BatchError(
                    f"{path}: is one JSON array; write one object a line: jq -c '.[]' in.json > "
                    "in.jsonl"
                )
            yield number, _parse(line)
        begun = begun or line is None or not line.isspace()


def too_long(what: str) -> LineError:
    """The error of a line, or a row, that is longer than any request may be."""
    return LineError(
        f"{what} is longer than {MAX_LINE_BYTES >> 20} MiB: no request may be",
        code="body_too_large",
    )


def _parse(line: bytes) -> Fields | LineError:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        message = f"the line is not JSON: {error.msg} (character {error.colno})"
        return LineError(message, code="invalid_json")
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
        found = kind.get(type(value), "a number")
        return LineError(f"the line is {found}: it must be one JSON object", code="invalid_type")
    if _WIDE in line.translate(_DIGITS_ALIKE) and (number := _unkept(line)):
        return LineError(
            f"the number {number} does not fit 64 bits and would not be kept as it is: write it "
            "as text",
            code="invalid_json",
        )
    if line.count(b"{") + line.count(b"[") > _MOST_OPEN and _too_deep(value):
        return LineError("objects and lists are too deep within each other", code="too_deep")
    return value


def _unkept(line: bytes) -> str:
    """The first integer of a JSON text that the parser has made a float of; empty if none."""
    for token in _TOKEN.finditer(line):
        text = token[0]
        if not text.lstrip(b"-").isdigit():
            continue  # a string, or a float as it was written
        if len(text) > _MOST_DIGITS or not -(2**63) <= int(text) < 2**64:
            return text[:_MOST_DIGITS].decode() + ("..." if len(text) > _MOST_DIGITS else "")
    return ""


def _too_deep(value: Fields) -> bool:
    """Whether orjson cannot write what it has read, with what an output line puts around it."""
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])
    except orjson.JSONEncodeError:
        return True
    return False
