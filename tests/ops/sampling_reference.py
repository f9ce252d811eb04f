"""Rows to sample, and what sampling means in numpy: a stable sort in float64."""

import numpy as np

from tpuinfer.ops.sampling import SamplingRows

NEAR = 1e-5
"""A cut that falls closer than this to a boundary may go either way in float32."""

DTYPES = {
    "top_k": np.int32,
    "seed": np.uint32,
    "choice": np.int32,
    "logprobs": np.int32,
    "biased": np.bool_,
    "constrained": np.bool_,
}


def rows(count, *, seed=0, **fields):
    """Rows that sample plainly at temperature 1, but for `fields`."""
    values = {
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "top_k": 0,
        "seed": seed,
        "choice": 0,
        "logprobs": -1,
        "repetition": 1.0,
        "presence": 0.0,
        "frequency": 0.0,
        "biased": False,
        "constrained": False,
        **fields,
    }
    return SamplingRows(
        **{
            name: np.broadcast_to(np.asarray(value, DTYPES.get(name, np.float32)), (count,))
            for name, value in values.items()
        }
    )


def kept_by_sorting(logits, top_k=0, top_p=1, min_p=0):
    """Which tokens of one row survive, and whether every cut is clear of its boundary.

    min_p first; then the k most likely; then the smallest set that reaches top_p of what is left.
    Of tokens that tie, the one of lower id counts as more likely.
    """
    weights = np.exp(logits.astype(np.float64) - logits.max())
    clear = (np.abs(weights - min_p) > NEAR * min_p).all() or min_p in (0, 1)
    order = [i for i in np.argsort(-logits, kind="stable") if weights[i] >= min_p]
    order = order[: top_k or None]
    if top_p < 1:
        reached = np.cumsum(weights[order]) / weights[order].sum()
        clear &= (np.abs(reached - top_p) > NEAR).all()
        order = order[: int(np.searchsorted(reached, top_p)) + 1]
    return np.isin(np.arange(len(logits)), order), clear


def probabilities(logits, temperature=1.0, **cuts):
    """What one row samples from: [V] float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    kept, clear = kept_by_sorting(scaled, **cuts)
    assert clear, "this case would go either way in float32"
    weights = np.where(kept, np.exp(scaled - scaled.max()), 0)
    return weights / weights.sum()
