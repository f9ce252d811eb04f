"""How an answer is judged against a golden: pure numpy, knows neither engine nor torch.

Two rules. A row of logits agrees when its relative error, max|a - b| / max|b| over the row, is
under a limit. A greedy sequence agrees when it equals the reference up to its end, or up to a step
where the reference itself could not decide: its two best logits closer than `NEAR_TIE` of the
row's largest |logit|. From there on the texts are different texts, and nothing more is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from golden_file import STEPS, Golden
from numpy.typing import ArrayLike, NDArray

NEAR_TIE = 1e-3


def relative_error(ours: ArrayLike, reference: ArrayLike, scale: float | None = None) -> float:
    """max|ours - reference| / max|reference|; infinite when anything is not a finite number.

    Args:
      ours: any shape.
      reference: the same shape.
      scale: max|reference| of the whole row where `reference` is only part of it.

    Raises:
      ValueError: the shapes differ.
    """
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    largest = float(np.max(np.abs(b))) if scale is None else float(scale)
    error = float(np.max(np.abs(a - b)))
    if not (np.isfinite(error) and np.isfinite(largest)):
        return float("inf")
    if largest == 0:
        return 0.0 if error == 0 else float("inf")
    return error / largest


def row_error(row: ArrayLike, golden: Golden, step: int, probe_ids: Sequence[int]) -> float:
    """The largest relative error of `row` [V], the logits at `step`, against what is stored.

    Looks at the stored largest logits, the probes, the row's scale and logsumexp, and at whether
    some other id has climbed over the smallest of the stored largest ones.

    Raises:
      ValueError: `step` is not in `STEPS`, or the row is too short for the stored ids.
    """
    if step not in STEPS:
        raise ValueError(f"step {step} is not stored; stored: {STEPS}")
    ours: NDArray[np.float64] = np.asarray(row, np.float64)
    stored, index = golden.rows, STEPS.index(step)
    top_ids, probes = stored.top_ids[index], np.asarray(probe_ids)
    if ours.ndim != 1 or ours.size <= max(int(top_ids.max()), int(probes.max())):
        raise ValueError(f"a row of shape {ours.shape} cannot hold id {int(top_ids.max())}")
    if not np.all(np.isfinite(ours)):
        return float("inf")
    scale = float(stored.scales[step])
    others = np.delete(ours, top_ids)
    climbed = float(others.max()) - float(stored.top_values[index].min()) if others.size else 0.0
    peak = float(ours.max())
    logsumexp = peak + float(np.log(np.sum(np.exp(ours - peak))))
    return max(
        relative_error(ours[top_ids], stored.top_values[index], scale),
        relative_error(ours[probes], stored.probe_values[index], scale),
        relative_error(np.max(np.abs(ours)), stored.scales[step], scale),
        relative_error(logsumexp, stored.logsumexps[step], scale),
        climbed / scale,
    )


@dataclass(frozen=True)
class Agreement:
    """How far a greedy sequence follows its golden.

    Attributes:
      matched: leading tokens that are equal.
      compared: tokens the golden holds.
      near_tie: the first difference is at a step where the reference could not decide.
      note: one line for a report.
    """

    matched: int
    compared: int
    near_tie: bool
    note: str

    @property
    def ok(self) -> bool:
        return self.matched == self.compared or self.near_tie


def compare_greedy(tokens: Sequence[int], golden: Golden, near_tie: float = NEAR_TIE) -> Agreement:
    """Hold greedy `tokens`, end tokens ignored, against the golden's.

    A sequence that is too short disagrees at its end, near-tie or not.
    """
    want = golden.tokens
    pairs = zip(tokens, want, strict=False)
    at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if at is None:
        matched = min(len(tokens), len(want))
        note = f"{golden.name}: {matched} of {len(want)} tokens, all equal"
        return Agreement(matched, len(want), False, note)
    margin, scale = float(golden.rows.margins[at]), float(golden.rows.scales[at])
    tied = margin < near_tie * scale
    note = (
        f"{golden.name}: token {at} is {tokens[at]}, the reference has {want[at]} "
        f"by {margin:.4g} with logits up to {scale:.4g}" + (" (a near-tie)" if tied else "")
    )
    return Agreement(at, len(want), tied, note)
