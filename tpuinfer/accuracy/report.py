"""What was found, as a table for people and as JSON for programs. No jax."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tpuinfer.accuracy.compare import Answer, Question, Row, Variant

FORMAT = 1

GOOD, FAIR = 0.005, 0.02
"""How much larger the perplexity may be, as a part, to be recommended, and to be usable."""

_NAMES = ("model", "weights", "ring", "dtype", "mesh", "rules")


@dataclass(frozen=True)
class Report:
    """An answer to a question, for people or programs."""

    question: Question
    answer: Answer

    def as_json(self) -> dict[str, Any]:
        """Plain values; `FORMAT` changes when a reader would have to."""
        reference = self.answer.reference
        text, windows = self.question.text, self.answer.windows
        return {
            "format": FORMAT,
            "text": {"source": text.source, "sha256": text.sha256},
            "tokens": windows.scored,
            "windows": len(windows.ids),
            "window": max(map(len, windows.ids)),
            "chunk": self.question.chunk,
            "reference": _plain(reference),
            "rows": [
                {
                    **_plain(row),
                    "perplexity_change": change(row, reference),
                    "verdict": verdict(row, reference),
                }
                for row in self.answer.rows
            ],
        }


def change(row: Row, reference: Row) -> float:
    """How much larger the perplexity is than the reference's, as a part of it."""
    return row.scores.perplexity / reference.scores.perplexity - 1


def verdict(row: Row, reference: Row) -> str:
    """Whether a variant may be recommended in the reference's place."""
    more = change(row, reference)
    return "recommended" if more <= GOOD else "usable" if more <= FAIR else "not recommended"


def render(report: Report) -> str:
    """The report as text: what was read, and a row for each."""
    text, windows = report.question.text, report.answer.windows
    longest = max(map(len, windows.ids))
    head = (
        f"{text.source}: {windows.scored} tokens scored, in {len(windows.ids)} windows of "
        f"{longest}, {min(report.question.chunk, longest)} at a time"
    )
    return "\n".join([head, "", *_aligned(list(_table(report.answer)))])


def _table(answer: Answer) -> Iterator[tuple[str, ...]]:
    everyone = (answer.reference, *answer.rows)
    names = _telling([row.variant for row in everyone])
    compared = bool(answer.rows)
    columns = ("weights MB", "ring B/token", "perplexity")
    against = ("change", "KL mean", "KL p99", "top 1", "verdict")
    yield (*names, *columns, *(against if compared else ()))
    for row in everyone:
        said = (str(getattr(row.variant, name) or "-") for name in names)
        size = f"{row.weight_bytes / 1e6:.1f}", f"{row.ring_bytes:.0f}"
        cells = (*said, *size, f"{row.scores.perplexity:.3f}")
        if compared:
            cells = (*cells, *_compared(row, answer.reference))
        yield cells


def _compared(row: Row, reference: Row) -> tuple[str, ...]:
    scores = row.scores
    if row is reference or scores.divergence is None:
        return ("", "", "", "", "reference")
    return (
        f"{change(row, reference):+.2%}",
        f"{scores.divergence:.5f}",
        f"{scores.divergence_p99:.4f}",
        f"{scores.top1:.2%}",
        verdict(row, reference),
    )


def _telling(variants: Sequence[Variant]) -> tuple[str, ...]:
    """The columns that tell variants apart; weights and ring always stand."""
    return tuple(
        name
        for name in _NAMES
        if name in ("weights", "ring") or len({getattr(one, name) for one in variants}) > 1
    )


def _plain(row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row.variant),
        **dataclasses.asdict(row.scores),
        "weight_bytes": row.weight_bytes,
        "ring_bytes_per_token": row.ring_bytes,
        "seconds": row.seconds,
    }


def _aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
