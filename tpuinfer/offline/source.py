"""The input of a batch: files whose lines are tasks, read from the beginning as often as needed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tpuinfer.offline.form import Form
from tpuinfer.offline.inputs import CSV_SUFFIXES, PARQUET_SUFFIX, Digest, InputFile, find_files
from tpuinfer.offline.reading import Fields, json_rows
from tpuinfer.offline.requests import Requests, Rows
from tpuinfer.offline.tables import csv_fields, csv_rows, parquet_fields, parquet_rows
from tpuinfer.offline.task import BatchError, LineError, Task

__all__ = ["Digest", "Form", "Source", "open_source"]


class Source:
    """All lines of all inputs; reading them again gives the same tasks.

    Attributes:
      names: what the files are called in `Task.where`. paths: the files, as they were found.
    """

    def __init__(self, files: Sequence[InputFile], reader: Requests | Rows) -> None:
        self._files = tuple(files)
        self._reader = reader
        self.names: Sequence[str] = tuple(file.name for file in self._files)
        self.paths: Sequence[str] = tuple(file.path for file in self._files)

    def tasks(self) -> Iterator[Task]:
        """The tasks of all lines in order, in memory for one line (or 256 rows of Parquet).

        Raises:
          BatchError: a file cannot be read to its end, or has changed since it was opened.
        """
        position = 0
        for file in self._files:
            for number, fields in _rows(file):
                yield self._reader.task(position, f"{file.name}:{number}", fields)
                position += 1

    def digests(self) -> list[Digest]:
        """What each file holds, in order; they are read when this is first called.

        Raises:
          BatchError: one cannot be read, or has changed since it was opened.
        """
        return [file.digest() for file in self._files]


def open_source(
    patterns: Sequence[str],
    form: Form,
    *,
    spool: Path | None = None,
    written: Sequence[str] = (),
) -> Source:
    """The lines of the files that `patterns` name.

    Files whose names end with .jsonl, .ndjson or .json have one object a line; .csv, .tsv and
    .parquet have a plain row a row; what is not Parquet may be packed, .jsonl.gz. Names stand for
    their last part where that is unambiguous.

    Args:
      patterns: paths, globs, or "-" for stdin (JSON lines), which is copied to be read again.
      form: what the lines are.
      spool: the folder for copies; None is the system's folder for temporary files.
      written: what the batch writes, which no input may be; a glob passes over it.

    Raises:
      BatchError: no such file, one that cannot be read or is of an unknown kind, a table where
        `form` is for requests.
      ConfigError: a field that `form` wants and a table does not have.
    """
    reader = Rows(form) if form.plain else Requests(form.defaults)
    files = find_files(patterns, spool, written)
    for file in files:
        fields = _table_fields(file)
        if fields is None:
            continue
        if not isinstance(reader, Rows):
            shown = ", ".join(repr(name) for name in fields[:20])
            raise BatchError(
                f"{file.path}: is a table of {shown}: say what the prompt is with --prompt-field "
                "or --template"
            )
        reader.check(fields, file.path)
    return Source(files, reader)


def _table_fields(file: InputFile) -> list[str] | None:
    """The names of a table's columns; None for JSON lines."""
    delimiter = CSV_SUFFIXES.get(file.suffix)
    if delimiter is None and file.suffix != PARQUET_SUFFIX:
        return None
    with file.open() as opened:
        if delimiter is None:
            return parquet_fields(opened, file.path)
        return csv_fields(opened, file.path, delimiter)


def _rows(file: InputFile) -> Iterator[tuple[int, Fields | LineError]]:
    """(line or row number, its fields or what is wrong with it), of a file that stays as it is."""
    delimiter = CSV_SUFFIXES.get(file.suffix)
    with file.open() as opened:
        if delimiter is not None:
            yield from file.guarded(csv_rows(opened, file.path, delimiter))
        elif file.suffix == PARQUET_SUFFIX:
            yield from file.guarded(parquet_rows(opened, file.path))
        else:
            yield from file.guarded(json_rows(opened, file.path))
