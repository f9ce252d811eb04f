"""Figures as a table for people and as JSON for programs. No jax."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpuinfer.benchmark.rounds import Outcome, spread

_COLUMNS = ("figure", "unit", "median", "p10", "p90", "tok/s", "bound", "by", "of bound")
_PEER_COLUMNS = ("peer", "ratio", "p10", "p90")
_MEMORY_COLUMNS = ("weights MB", "kv MB")


@dataclass(frozen=True)
class Row:
    """One figure beside its bound, and beside a peer's if there was one.

    Attributes:
      figure: what was timed, such as "decode step, 8 live slots".
      case: the numbers that tell this row from the others of its report.
      median, p10, p90: over all samples, in `unit`.
      tokens_per_second: at the median.
      bound: the least that it can be, or what it should be, in `unit`; None where that is not
        known. bound_by: "memory", "matmul", or "goal"; empty without a bound.
      fraction: bound / median: how much of what is possible is reached.
      peer: a peer's median, in `unit`.
      ratio, ratio_p10, ratio_p90: how many times faster than the peer, over the rounds.
      weight_bytes, kv_bytes: what weights and caches take, where rows differ in that.
    """

    figure: str
    case: Mapping[str, int]
    unit: str
    median: float
    p10: float
    p90: float
    tokens_per_second: float
    bound: float | None
    bound_by: str
    fraction: float | None
    peer: float | None = None
    ratio: float | None = None
    ratio_p10: float | None = None
    ratio_p90: float | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None


def row(
    figure: str,
    case: Mapping[str, int],
    outcome: Outcome,
    *,
    tokens: float,
    bound: float | None,
    bound_by: str,
    memory: tuple[int | None, int | None] = (None, None),
) -> Row:
    """The row of an outcome in milliseconds.

    Args:
      tokens: how many one sample makes or reads. bound: milliseconds.
      memory: bytes of weights, and of caches.
    """
    ours = spread(outcome.ours)
    peers = spread(outcome.theirs) if outcome.theirs else None
    ratios = spread(outcome.ratios) if outcome.ratios else None
    return Row(
        figure,
        case,
        "ms",
        ours.median,
        ours.p10,
        ours.p90,
        tokens_per_second=1e3 * tokens / ours.median,
        bound=bound,
        bound_by=bound_by,
        fraction=None if bound is None else bound / ours.median,
        peer=peers.median if peers else None,
        ratio=ratios.median if ratios else None,
        ratio_p10=ratios.p10 if ratios else None,
        ratio_p90=ratios.p90 if ratios else None,
        weight_bytes=memory[0],
        kv_bytes=memory[1],
    )


@dataclass(frozen=True)
class Report:
    """What one run of the benchmark says.

    Attributes:
      machine: the devices, the software and the measured limits.
      settings: what was asked for, and what was decided from it.
      notes: lines for a reader, such as the mix of requests.
    """

    mode: str
    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return {**dataclasses.asdict(self), "rows": [dataclasses.asdict(one) for one in self.rows]}


def render(report: Report) -> str:
    """The report as text: what it ran on, the table, the notes."""
    lines = [
        f"{report.mode}  " + _pairs(report.model),
        "on  " + _pairs(report.machine),
        "with  " + _pairs(report.settings),
        *(
            f"{name}  " + _pairs(nested)
            for name, nested in report.model.items()
            if isinstance(nested, Mapping)
        ),
        "",
        *_table(report.rows),
    ]
    return "\n".join([*lines, *(["", *report.notes] if report.notes else [])])


def _table(rows: Sequence[Row]) -> list[str]:
    against = any(one.ratio is not None for one in rows)
    memory = any(one.weight_bytes is not None for one in rows)
    head = (*_COLUMNS, *(_PEER_COLUMNS if against else ()), *(_MEMORY_COLUMNS if memory else ()))
    cells = [head]
    for one in rows:
        ours = (one.median, one.p10, one.p90, one.tokens_per_second, one.bound)
        fraction = "-" if one.fraction is None else f"{one.fraction:.2f}"
        line = [one.figure, one.unit, *map(number, ours), one.bound_by or "-", fraction]
        if against:
            line += map(number, (one.peer, one.ratio, one.ratio_p10, one.ratio_p90))
        if memory:
            sizes = (one.weight_bytes, one.kv_bytes)
            line += [number(None if size is None else size / 1e6) for size in sizes]
        cells.append(tuple(line))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def number(value: float | None) -> str:
    """Three digits that count, without an exponent; "-" for nothing.

    >>> [number(value) for value in (1234.5, 48.25, 1.2345, 0.01239, None)]
    ['1234', '48.2', '1.23', '0.0124', '-']
    """
    if value is None:
        return "-"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 4
    return f"{value:.{digits}f}"


def _pairs(values: Mapping[str, Any]) -> str:
    """Names and values on one line; what is nested is left to a line of its own."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(value) if isinstance(value, float) else value}"
        for name, value in values.items()
        if value is not None and not isinstance(value, Mapping)
    )
