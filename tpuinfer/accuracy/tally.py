"""Losses and divergences over the tokens of a text, added up in float64.

loss        -log q(t)                            of the token t that comes
perplexity  exp(mean loss)
divergence  sum_v p(v) (log p(v) - log q(v))     Kullback-Leibler, p the reference, in nats
top 1       the most likely token of p is that of q; ties go to the lowest id
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scores:
    """Of one model on one text.

    Attributes:
      tokens: how many were scored.
      perplexity: per token.
      divergence, divergence_p99, divergence_max: mean, 99th percentile and largest over the tokens,
        nats; None without a reference.
      top1: part of the tokens where the most likely one agrees.
    """

    tokens: int
    perplexity: float
    divergence: float | None = None
    divergence_p99: float | None = None
    divergence_max: float | None = None
    top1: float | None = None


class Tally:
    """Takes rows of log-probabilities as they come."""

    def __init__(self) -> None:
        self._losses: list[NDArray[np.float64]] = []
        self._divergences: list[NDArray[np.float64]] = []
        self._agreed = 0

    def add(
        self,
        log_probs: NDArray[np.float32],
        targets: NDArray[np.int32],
        reference: NDArray[np.float32] | None = None,
    ) -> None:
        """Take in rows.

        Args:
          log_probs: [N, V] of the model, normalised. targets: [N], the tokens that come.
          reference: [N, V] of the reference.
        """
        chosen = np.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
        self._losses.append(-chosen.astype(np.float64))
        if reference is None:
            return
        self._divergences.append(divergence(reference, log_probs))
        agreed = reference.argmax(axis=-1) == log_probs.argmax(axis=-1)
        self._agreed += int(agreed.sum())

    def scores(self) -> Scores:
        losses = np.concatenate(self._losses)
        perplexity = math.exp(losses.mean())
        if not self._divergences:
            return Scores(losses.size, perplexity)
        found = np.concatenate(self._divergences)
        return Scores(
            tokens=losses.size,
            perplexity=perplexity,
            divergence=float(found.mean()),
            divergence_p99=float(np.percentile(found, 99)),
            divergence_max=float(found.max()),
            top1=self._agreed / losses.size,
        )


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """[N] Kullback-Leibler divergence of q from p, both [N, V] log-probabilities.

    What p holds for impossible (-inf) adds nothing; what q alone does is infinite.
    """
    weights = np.exp(p)
    with np.errstate(invalid="ignore"):
        apart = np.where(weights > 0, p - q, 0)
    return np.einsum("nv,nv->n", weights, apart, dtype=np.float64)
