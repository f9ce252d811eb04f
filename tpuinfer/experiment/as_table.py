"""Records as a table: one row a cell, and under it why the others have no figures."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpuinfer.experiment.record import Record
from tpuinfer.sharding.report import render

_NONE = "-"


@dataclass(frozen=True)
class Table:
    """Text for a terminal (`str`), HTML for a notebook.

    Attributes:
      header, rows: cells of text. best: the row that is marked; None = none.
      notes: lines under the table.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    best: int | None = None
    notes: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [("", *self.header)]
        lines += [("*" if at == self.best else "", *row) for at, row in enumerate(self.rows)]
        return "\n".join([render(lines), *self.notes])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = []
        for at, row in enumerate(self.rows):
            style = ' style="font-weight:bold"' if at == self.best else ""
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in row)
            body.append(f"<tr{style}>{cells}</tr>")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><tr>{head}</tr>{''.join(body)}</table>{notes}"


@dataclass(frozen=True)
class _Column:
    """A column: its name, and what it shows of a record; None = unknown."""

    name: str
    show: Callable[[Record], Any]


def table(records: Sequence[Record]) -> Table:
    """One row a cell, in their order; the fastest decode step is marked with *.

    Columns that say the same of all cells are told once, in the line above the notes; those that
    nothing is known of are left out.
    """
    said = [[_written(column.show(record)) for column in _COLUMNS] for record in records]
    varied = [
        at
        for at, column in enumerate(_COLUMNS)
        if len({row[at] for row in said}) > 1
        or (column.name in _ALWAYS and any(row[at] != _NONE for row in said))
    ]
    rows = [tuple(row[at] for at in varied) for row in said]
    alike = [
        f"{column.name} {said[0][at]}"
        for at, column in enumerate(_COLUMNS)
        if said and at not in varied and said[0][at] != _NONE
    ]
    notes = [f"all cells: {', '.join(alike)}"] if alike else []
    return Table(
        tuple(_COLUMNS[at].name for at in varied), rows, best(records), (*notes, *_notes(records))
    )


def best(records: Sequence[Record]) -> int | None:
    """The cell with the fastest decode step, for each token if slots differ; measured ones first.

    None = no cell has a time.
    """
    found = [
        (one.decode["measured_ms"] is None, one.step_ms / _slots(one), at)
        for at, one in enumerate(records)
        if one.ok and one.step_ms is not None
    ]
    return min(found)[2] if found else None


def _slots(record: Record) -> int:
    """Slots of a cell; 1 where memory decided."""
    text = str(record.cell["slots"])
    if text == "auto":
        return 1
    return sum(int(part.split("x")[0]) for part in text.split(","))


def _notes(records: Sequence[Record]) -> list[str]:
    said: dict[str, list[str]] = {}
    for one in records:
        lines = [] if one.ok else [f"{one.status}: {one.why}"]
        lines += [f"{note['axis']}: {note['why']}" for note in one.replicated]
        if one.logits is not None and one.logits["same_bits"] is False:
            lines.append("lies as an earlier cell does, and its bits differ")
        if one.logits is not None and one.logits["why"]:
            lines.append(one.logits["why"])
        for line in lines:
            said.setdefault(line, []).append(_name(one))
    notes = [f"{_names(names)}: {line}" for line, names in said.items()]
    if any(one.where["simulated"] for one in records):
        notes.append(
            "simulated devices share the cores and the memory of one machine: compare, but take no "
            "time for that of a slice"
        )
    return notes


def _name(record: Record) -> str:
    place = f"{record.cell['topology']} " if record.cell["topology"] else ""
    return f"{place}{record.mesh}, {record.cell['rules']}, {record.cell['slots']}"


def _names(names: Sequence[str]) -> str:
    """The first of some cells, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _written(value: Any) -> str:
    if value is None:
        return _NONE
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _of(program: str, name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record, program).get(name)


def _measured(program: str) -> Callable[[Record], Any]:
    def show(record: Record) -> Any:
        found = getattr(record, program).get("measured_ms")
        return found["median"] if found else None

    return show


def _gigabytes(record: Record) -> Any:
    if record.hbm is None:
        return None
    return sum(record.hbm[name] for name in ("weights", "rings", "state", "temporaries")) / 1e9


def _resharding(record: Record) -> Any:
    return None if not record.resharding_bytes else record.resharding_bytes / 1e6


def _collectives(record: Record) -> Any:
    found = record.decode.get("collectives")
    if found is None:
        return None
    count, size = (sum(one[name] for one in found.values()) for name in ("count", "bytes"))
    return f"{count} / {size / 1e6:.3g}"


def _compile(record: Record) -> Any:
    known = [one for one in record.compile_seconds.values() if one is not None]
    return sum(known) if known else None


def _logits(name: str) -> Callable[[Record], Any]:
    return lambda record: None if record.logits is None else record.logits[name]


def _bits(record: Record) -> Any:
    found = None if record.logits is None else record.logits["equal"]
    return None if found is None else "equal" if found else "differ"


_COLUMNS = (
    _Column("model", lambda record: record.cell["model"]),
    _Column("topology", lambda record: record.cell["topology"]),
    _Column("mesh", lambda record: record.mesh),
    _Column("rules", lambda record: record.cell["rules"]),
    _Column("slots", lambda record: record.cell["slots"]),
    _Column("context", lambda record: record.context),
    _Column("weights", lambda record: record.cell["weights"]),
    _Column("ring", lambda record: record.cell["ring"]),
    _Column("dtype", lambda record: record.cell["dtype"]),
    _Column("on", lambda record: record.where["device_kind"]),
    _Column("how", lambda record: record.where["how"]),
    _Column("status", lambda record: record.status),
    _Column("step ms", _measured("decode")),
    _Column("bound ms", _of("decode", "bound_ms")),
    _Column("limit", _of("decode", "limit")),
    _Column("chunk ms", _measured("chunk")),
    _Column("chunk bound ms", _of("chunk", "bound_ms")),
    _Column("traffic", _of("decode", "traffic_ratio")),
    _Column("GB/device", _gigabytes),
    _Column("collectives / MB a step", _collectives),
    _Column("prefill moves MB", _resharding),
    _Column("KV repeats", lambda record: record.repeats),
    _Column("compile s", _compile),
    _Column("logits max", _logits("max")),
    _Column("mean", _logits("mean")),
    _Column("top-1", _logits("top1")),
    _Column("bits", _bits),
)

_ALWAYS = (
    *("mesh", "rules", "status", "step ms", "bound ms", "limit", "chunk ms"),
    *("GB/device", "collectives / MB a step", "logits max", "top-1"),
)
