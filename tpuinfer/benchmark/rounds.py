"""Rounds of ours and of a peer's in turn, so that both meet the same machine; what they say."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Round = Callable[[], Sequence[float]]
"""Does the work once and returns its samples, in milliseconds, what warms up left out."""


@dataclass(frozen=True)
class Spread:
    """Samples in three numbers: the median, and what 10% and 90% of them stay below."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Outcome:
    """Rounds of one piece of work.

    Attributes:
      ours: samples of all rounds. theirs: a peer's, if there was one.
      ratios: for each round, the peer's median over ours: above 1, we are faster.
    """

    ours: tuple[float, ...]
    theirs: tuple[float, ...] | None = None
    ratios: tuple[float, ...] | None = None


def spread(samples: Sequence[float]) -> Spread:
    """Median, p10 and p90, interpolated between samples.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, p10=1.2, p90=2.8)
    """
    ordered = sorted(samples)
    return Spread(statistics.median(ordered), quantile(ordered, 0.1), quantile(ordered, 0.9))


def quantile(ordered: Sequence[float], part: float) -> float:
    """What `part` of the samples, which ascend, stay below; between two, on the line."""
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def in_turn(runs: Sequence[Round], rounds: int) -> list[list[Sequence[float]]]:
    """Run all `rounds` times in turn, after one round each that does not count.

    The order is turned round from round to round, for the machine may get slower meanwhile.

    Returns:
      For each of `runs`, the samples of each round.
    """
    for run in runs:
        run()
    samples: list[list[Sequence[float]]] = [[] for _ in runs]
    for index in range(rounds):
        order = list(zip(samples, runs, strict=True))
        for mine, run in reversed(order) if index % 2 else order:
            mine.append(run())
    return samples


def outcome(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]] | None = None
) -> Outcome:
    """What the samples of each round say; both lists are as long."""
    mine = tuple(sample for one in ours for sample in one)
    if theirs is None:
        return Outcome(mine)
    peers = tuple(sample for one in theirs for sample in one)
    pairs = zip(ours, theirs, strict=True)
    ratios = (statistics.median(other) / statistics.median(own) for own, other in pairs)
    return Outcome(mine, peers, tuple(ratios))


def alternate(ours: Round, theirs: Round | None, rounds: int) -> Outcome:
    """The outcome of `in_turn` for us and a peer, or for us alone."""
    return outcome(*in_turn([ours] if theirs is None else [ours, theirs], rounds))
