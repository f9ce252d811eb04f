"""Rows of tables: CSV, TSV and Parquet."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

from tpuinfer.offline.reading import MAX_LINE_BYTES, Fields, byte_lines
from tpuinfer.offline.task import BatchError, LineError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_BATCH_ROWS = 256
_BUFFER = 2**20


def csv_fields(file: BinaryIO, path: str, delimiter: str) -> list[str]:
    """The names in a CSV file's first row.

    Raises:
      BatchError: there are none, or two columns share one.
    """
    return _header(_Feed(file, path), delimiter)


def csv_rows(file: BinaryIO, path: str, delimiter: str) -> Iterator[tuple[int, Fields | LineError]]:
    """(number of the line where it begins, the row or what is wrong with it); all cells are text.

    Cells may be quoted and have line ends in them. Blank lines are passed over, but counted.

    Raises:
      BatchError: no header, or a quote that stays open over what may be many rows.
    """
    feed = _Feed(file, path)
    fields = _header(feed, delimiter)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        first = feed.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if feed.ended and feed.number > first:
                raise BatchError(
                    f"{path}:{first}: a quote that is opened here is never closed"
                ) from None
            yield first, LineError(f"the row is not CSV: {error}", code="invalid_csv")
            continue
        if cells is None:
            return
        if cells:
            yield first, _csv_row(fields, cells, feed)


def parquet_fields(file: BinaryIO, path: str) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
      BatchError: it is none, pyarrow is not installed, or a column holds what JSON cannot.
    """
    schema = _parquet(file, path).schema_arrow
    for column in schema:
        if _has_bytes(column.type):
            raise BatchError(
                f"{path}: column {column.name!r} holds bytes ({column.type}), which JSON has no "
                "words for: leave it out, or write it as text"
            )
    names = [str(name) for name in schema.names]
    _check_unique(names, path)
    return names


def parquet_rows(file: BinaryIO, path: str) -> Iterator[tuple[int, Fields | LineError]]:
    """(number from 1, the row or what is wrong with it) with JSON's values.

    Times are ISO 8601's text, decimals are text, and NaN, which stands for what is not there, is
    null. Text that is not UTF-8, which some writers let through, is an error of its row.

    Raises:
      BatchError: as `parquet_fields`; a damaged file.
    """
    import pyarrow as pa

    number = 0
    try:
        batches = _parquet(file, path).iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
        for batch in batches:
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for at in range(batch.num_rows):
                number += 1
                yield number, _parquet_row(columns, at)
    except (pa.ArrowException, OSError) as error:
        raise BatchError(f"{path}: cannot be read after row {number} ({_line(error)})") from None


class _Feed:
    """Lines of text for the csv module, with what is to be known about the present row.

    Attributes:
      path: of the file. number: of the line that was read last, from 1. ended: it was the last.
      broken: whether a line of the present row is not UTF-8.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._lines = byte_lines(file, path)
        self.path = path
        self._first = 1
        self._bytes = 0
        self.number = 0
        self.ended = False
        self.broken = False

    def begin(self) -> int:
        """A row begins; returns the number of its first line."""
        self._first, self._bytes, self.broken = self.number + 1, 0, False
        return self._first

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.number += 1
        self._bytes += MAX_LINE_BYTES + 1 if line is None else len(line)
        if line is None or self._bytes > MAX_LINE_BYTES:
            raise BatchError(
                f"{self.path}:{self._first}: the row that begins here is longer than "
                f"{MAX_LINE_BYTES >> 20} MiB; is a quote never closed?"
            )
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.broken = True
            return line.decode(errors="replace")


def _header(feed: _Feed, delimiter: str) -> list[str]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # the feed has the bound
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    names: list[str] = []
    while not names:
        first = feed.begin()
        try:
            names = next(reader)
        except StopIteration:
            raise BatchError(
                f"{feed.path}: has no header row; its first row must name columns"
            ) from None
        except csv.Error as error:
            raise BatchError(f"{feed.path}:{first}: the header is not CSV ({error})") from None
    if feed.broken:
        raise BatchError(f"{feed.path}:{first}: the header is not UTF-8; write the file as UTF-8")
    _check_unique(names, feed.path)
    return names


def _check_unique(names: Sequence[str], path: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BatchError(f"{path}: two columns are named {twice!r}; each needs a name of its own")


def _csv_row(fields: list[str], cells: list[str], feed: _Feed) -> Fields | LineError:
    if feed.broken:
        return LineError("the row is not UTF-8", code="invalid_unicode")
    if len(cells) != len(fields):
        wanted = f"the header names {len(fields)} columns"
        return LineError(f"the row has {len(cells)} cells: {wanted}", code="invalid_csv")
    return dict(zip(fields, cells, strict=True))


def _parquet(file: BinaryIO, path: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError:
        raise BatchError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install tpuinfer[parquet]"
        ) from None
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise BatchError(f"{path}: is no Parquet file that can be read ({_line(error)})") from None


def _has_bytes(kind: "pa.DataType") -> bool:
    import pyarrow.types as kinds  # type: ignore[import-untyped]

    if kinds.is_dictionary(kind):
        return _has_bytes(kind.value_type)
    if kinds.is_nested(kind):
        return any(_has_bytes(kind.field(at).type) for at in range(kind.num_fields))
    return any(
        is_one(kind)
        for is_one in (
            kinds.is_binary,
            kinds.is_large_binary,
            kinds.is_fixed_size_binary,
            kinds.is_binary_view,
        )
    )


def _values(column: "pa.Array") -> list[Any]:
    """A column's values; nanoseconds, which Python's times do not have, are text at once.

    What is not UTF-8 is the error that says so.
    """
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(one) for one in column]
    except ValueError:
        return column.cast(pa.string()).to_pylist()


def _value(one: "pa.Scalar") -> Any:
    try:
        return one.as_py()
    except UnicodeDecodeError as error:
        return error


def _parquet_row(columns: Mapping[str, list[Any]], at: int) -> Fields | LineError:
    row: Fields = {}
    for name, values in columns.items():
        try:
            row[name] = _as_json(values[at])
        except UnicodeDecodeError:
            message = f"column {name!r} holds text that is not UTF-8"
            return LineError(message, code="invalid_unicode", param=name)
        except ValueError as error:
            message = f"column {name!r} holds {error}, which JSON has no words for"
            return LineError(message, code="invalid_value", param=name)
    return row


def _as_json(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
      ValueError: JSON has none. UnicodeDecodeError: `value` is one.
    """
    match value:
        case UnicodeDecodeError():
            raise value
        case None | bool() | int() | str():
            return value
        case float():
            if math.isinf(value):
                raise ValueError("infinity")
            return None if math.isnan(value) else value
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta() | Decimal() | UUID():
            return str(value)
        case dict():
            return {str(key): _as_json(one) for key, one in value.items()}
        case list() | tuple():
            return [_as_json(one) for one in value]
        case _:
            raise ValueError(f"a {type(value).__name__}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
