import math

import numpy as np
import pytest

from tpuinfer.accuracy.tally import Tally, divergence


def log_of(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


def test_scores_by_hand():
    """The reference is p, the model q; the tokens that come are 0 and 1."""
    p, q = log_of([0.5, 0.25, 0.25], [0.2, 0.7, 0.1]), log_of([0.5, 0.25, 0.25], [0.6, 0.3, 0.1])
    tally = Tally()
    tally.add(q, np.array([0, 1], np.int32), p)
    found = tally.scores()
    apart = 0.2 * math.log(0.2 / 0.6) + 0.7 * math.log(0.7 / 0.3)
    assert found.tokens == 2
    assert found.perplexity == pytest.approx(1 / math.sqrt(0.5 * 0.3))
    assert found.divergence == pytest.approx(apart / 2)
    assert found.divergence_max == pytest.approx(apart)
    assert found.divergence_p99 == pytest.approx(0.99 * apart)
    assert found.top1 == 0.5


def test_parts_add_up_to_the_whole():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 30, 11)).astype(np.float32)
    p, q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = random.integers(11, size=30).astype(np.int32)
    whole, parts = Tally(), Tally()
    whole.add(q, targets, p)
    for some in (slice(0, 7), slice(7, 8), slice(8, 30)):
        parts.add(q[some], targets[some], p[some])
    assert whole.scores() == parts.scores()


def test_without_a_reference_there_is_a_perplexity_alone():
    tally = Tally()
    tally.add(log_of([0.25, 0.75]), np.array([0], np.int32))
    assert tally.scores().perplexity == pytest.approx(4)
    assert tally.scores().divergence is None
    assert tally.scores().top1 is None


def test_the_most_likely_token_of_a_tie_is_the_lowest():
    tally = Tally()
    tally.add(log_of([0.4, 0.4, 0.2]), np.array([2], np.int32), log_of([0.5, 0.3, 0.2]))
    assert tally.scores().top1 == 1
    tally.add(log_of([0.4, 0.4, 0.2]), np.array([2], np.int32), log_of([0.3, 0.5, 0.2]))
    assert tally.scores().top1 == 0.5


def test_divergence_of_what_is_impossible():
    some, never = log_of([1.0, 0.0]), log_of([0.5, 0.5])
    assert divergence(some, some).tolist() == [0]
    assert divergence(some, never) == pytest.approx(math.log(2))
    assert divergence(never, some) == math.inf
