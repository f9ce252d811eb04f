"""The end of a batch of plain rows as a table: each row in its place, with what came of it.

    id,text                        id,text,output,finish_reason,error
    1,good                  ->     1,good,positive,stop,
    2,                             2,,,,"row 2 has no text ..."

It is made from the input and the journals when all is done, in bounded memory, and put in place
whole. A column of the input that is called like an added one keeps its name, and the added one is
called tpuinfer_output; where that is taken too, as in a chain of batches, tpuinfer_output_2.
"""

import csv
import importlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tpuinfer.checkpoint.paths import is_remote
from tpuinfer.errors import ConfigError
from tpuinfer.offline.disk import NEW, place, reason, remove, sync_folder
from tpuinfer.offline.ledger import Ledger
from tpuinfer.offline.source import Source
from tpuinfer.offline.task import BatchError

_SUFFIXES = (".csv", ".parquet")
_LINES = ".jsonl"
_NEAREST = {
    **dict.fromkeys((".tsv", ".xls", ".xlsx", ".ods"), ".csv"),
    **dict.fromkeys((".pq", ".arrow", ".feather", ".orc", ".avro"), ".parquet"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), _LINES),
}
"""How a name ends of a kind that is not written -> the nearest that is."""

_ADDED = ("output", "finish_reason", "error")
_GROUP_ROWS = 4096

_INT64 = range(-(2**63), 2**63)

Row = dict[str, Any]


def is_table(path: str, flag: str = "output") -> bool:
    """Whether an output of this name is written as a table.

    Args:
      flag: that gives the name.

    Raises:
      ConfigError: the name is of a table, or of a packed file, of a kind that is not written.
      BatchError: it is a table, and lies in object storage.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _NEAREST:
        stem = path[: -len(suffix)]
        whole = Path(stem).suffix.lower() in (*_SUFFIXES, _LINES)
        raise ConfigError(
            f"{flag} is {path!r}: {suffix} is not written, only {', '.join((*_SUFFIXES, _LINES))}; "
            f"nearest: {stem if whole else stem + _NEAREST[suffix]}"
        )
    if suffix not in _SUFFIXES:
        return False
    if is_remote(path):
        raise BatchError(f"{path}: a table is written to a local disk; nearest: a name in .jsonl")
    return True


def check_own(path: str, manifest: str) -> None:
    """Refuse a table that is there before its batch: only a batch's own is written again.

    Args:
      manifest: path of the batch's manifest, which is there once the batch is begun.

    Raises:
      BatchError: there is a file at `path`, and no manifest.
    """
    if os.path.exists(path) and not place(manifest).exists():
        raise BatchError(
            f"{path}: is there, and this batch, which is new, has not made it; move it away or "
            "give another --output"
        )


def write_table(path: str, source: Source, ledger: Ledger) -> None:
    """Puts the table at `path`, in the input's order.

    Args:
      ledger: of all lines of `source`.

    Raises:
      BatchError: the table cannot be written; what was at `path` is still there.
    """
    names, kinds = _columns(source)
    added = {name: _free(name, names) for name in _ADDED}
    columns = [*names, *added.values()]
    rows = (
        {**(fields or {}), **{added[name]: outcome.get(name) for name in _ADDED}}
        for fields, outcome in zip(_fields(source), map(_outcome, ledger.outcomes()), strict=True)
    )
    target = Path(os.path.realpath(path))
    new = target.with_name(target.name + NEW)
    try:
        if target.suffix.lower() == ".csv":
            _write_csv(new, columns, rows)
        else:
            _write_parquet(new, columns, kinds, rows)
        os.replace(new, target)
        sync_folder(target.parent)
    except OSError as error:
        remove(new)
        raise BatchError(
            f"{path}: cannot be written ({reason(error)}); the answers are safe: run the same "
            "command again to write the table"
        ) from error


def _fields(source: Source) -> Iterator[Mapping[str, Any] | None]:
    for task in source.tasks():
        yield task.row


def _columns(source: Source) -> tuple[list[str], dict[str, str]]:
    """Names of all fields, in the order of their first appearance, and what they hold."""
    kinds: dict[str, str] = {}
    for fields in _fields(source):
        for name, value in (fields or {}).items():
            kinds[name] = _merged(kinds.get(name, "null"), _kind(value))
    return list(kinds), kinds


def _free(name: str, taken: Sequence[str]) -> str:
    """What an added column is called beside those of the input."""
    numbered = (f"tpuinfer_{name}_{number}" for number in itertools.count(2))
    candidates = itertools.chain((name, f"tpuinfer_{name}"), numbered)
    return next(one for one in candidates if one not in taken)


def _kind(value: Any) -> str:
    """One of null, boolean, integer, number, text and json."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer" if value in _INT64 else "json"
        case float():
            return "number"
        case str():
            return "text"
        case _:
            return "json"


def _merged(first: str, second: str) -> str:
    """What holds values of both kinds."""
    kinds = {first, second} - {"null"}
    if len(kinds) < 2:
        return kinds.pop() if kinds else "null"
    return "number" if kinds == {"integer", "number"} else "json"


def _outcome(line: bytes | None) -> Row:
    """The added columns of one row, by their plain names; lists where there are several answers."""
    if line is None:
        return {}
    said = orjson.loads(line)
    if said.get("row") is not None and "response" not in said:
        return {
            "output": said.get("output", said.get("outputs")),
            "finish_reason": said.get("finish_reason", said.get("finish_reasons")),
        }
    error = said["error"] or said["response"]["body"]["error"]
    return {"error": error["message"]}


def _write_csv(path: Path, columns: Sequence[str], rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in columns])
        file.flush()
        os.fsync(file.fileno())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _write_parquet(
    path: Path, columns: Sequence[str], kinds: Mapping[str, str], rows: Iterator[Row]
) -> None:
    """Added columns are text, but vectors: those are lists of numbers."""
    arrow, parquet = _pyarrow()
    types = {
        "boolean": arrow.bool_(),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "vector": arrow.list_(arrow.float64()),
    }
    first = list(itertools.islice(rows, _GROUP_ROWS))
    added = columns[len(kinds) :]
    all_kinds = {**kinds, **dict.fromkeys(added, "json")}
    if any(_is_vector(row.get(added[0])) for row in first):
        all_kinds[added[0]] = "vector"
    schema = arrow.schema([(name, types.get(all_kinds[name], arrow.string())) for name in columns])
    with parquet.ParquetWriter(path, schema) as writer:
        group = first
        while group:
            shaped = [
                {name: _typed(row.get(name), all_kinds[name]) for name in columns} for row in group
            ]
            writer.write_table(arrow.Table.from_pylist(shaped, schema=schema))
            group = list(itertools.islice(rows, _GROUP_ROWS))
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], float)


def _typed(value: Any, kind: str) -> Any:
    if value is None or kind in ("boolean", "integer", "vector"):
        return value
    return float(value) if kind == "number" else _cell(value)


def _pyarrow() -> tuple[Any, Any]:
    """Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(
            "output is a .parquet file, for which pyarrow is not installed: install "
            "tpuinfer[parquet], or give an output that ends in .csv or .jsonl"
        ) from None
