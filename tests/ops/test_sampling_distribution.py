"""Sampled tokens against the distribution they should follow: chi-square, ties and steering too."""

import jax
import numpy as np
import pytest
from sampling_reference import probabilities, rows
from scipy.special import chdtrc
from steering_reference import mask_words, steered

from tpuinfer.ops import sampling, steering
from tpuinfer.ops.steering import GENERATED, IN_PROMPT, Biases, Steering, Tables

sample = jax.jit(sampling.sample)
steer = jax.jit(steering.steer)

DRAWS = 8_000
BATCH = 250
UNLIKELY = 1e-4
"""Seeds are fixed, so a run either passes for ever or points at a bias."""

PLAIN = np.log([0.3, 0.05, 0.2, 0.1, 0.15, 0.05, 0.08, 0.07])
TIES = np.log([0.05, 0.2, 0.1, 0.1, 0.2, 0.05, 0.1, 0.1, 0.1])
"""In order of likelihood: 1 4 | 2 3 6 7 8 | 0 5."""


def draw(logits, *, draws=DRAWS, batch=BATCH, varied="position", by=None, **fields):
    """`draws` tokens of one row of `logits`, over positions, seeds or choices from 0 up.

    All rows are steered as the one slot of `by`.
    """
    logits = np.broadcast_to(np.asarray(logits, np.float32), (batch, len(logits)))
    tokens = []
    for start in range(0, draws, batch):
        steps = np.arange(start, start + batch, dtype=np.int32)
        positions = steps if varied == "position" else np.full(batch, 9, np.int32)
        own = {"seed": 5, **fields} | ({} if varied == "position" else {varied: steps})
        asked = rows(batch, **own)
        offered = None if by is None else steer(logits, asked, by)
        tokens.append(np.asarray(sample(logits, asked, positions, offered).tokens))
    return np.concatenate(tokens)


def chance(drawn, expected):
    """How probable counts as far from `expected` (probabilities) as those of `drawn` are."""
    counts = np.bincount(drawn, minlength=len(expected))
    assert counts[expected == 0].sum() == 0, "drew what was cut"
    live = expected > 0
    wanted = expected[live] * len(drawn)
    assert wanted.min() > 5, "too few draws to judge"
    return chdtrc(live.sum() - 1, ((counts[live] - wanted) ** 2 / wanted).sum())


@pytest.mark.parametrize(
    ("logits", "settings", "survivors"),
    [
        (PLAIN, {}, 8),
        (PLAIN, {"temperature": 0.6}, 8),
        (PLAIN, {"temperature": 1.7}, 8),
        (PLAIN, {"top_k": 3, "temperature": 2.0}, 3),
        (PLAIN, {"top_p": 0.7}, 4),
        (PLAIN, {"min_p": 0.3}, 4),
        (TIES, {"top_k": 4}, 4),
        (TIES, {"top_p": 0.55}, 4),
        (TIES, {"min_p": 0.45}, 7),
        (TIES, {"top_k": 6, "top_p": 0.7, "temperature": 0.8}, 4),
        (TIES, {"top_k": 5, "top_p": 0.9, "min_p": 0.3, "temperature": 1.3}, 5),
        (np.full(13, -3.0), {"top_k": 5}, 5),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(logits, settings, survivors):
    cuts = {name: value for name, value in settings.items() if name != "temperature"}
    expected = probabilities(logits, settings.get("temperature", 1.0), **cuts)
    assert (expected > 0).sum() == survivors
    assert chance(draw(logits, **settings), expected) > UNLIKELY


def one_slot(*, barred=0):
    """Steering of 8 tokens: 0, 2 and 3 are in the prompt, the answer is 2 5 5, 0 and 4 end it."""
    counts = np.array([[1, 0, 1 + GENERATED, IN_PROMPT, 0, 2 * GENERATED, 0, 0]], np.int32)
    biases = Biases(np.array([[1, 6, 0]], np.int32), np.array([[1.5, -0.7, -0.5]], np.float32))
    allowed = np.array([[1, 1, 1, 0, 0, 1, 1, 0]], bool)
    return Steering(
        counts,
        np.tile(np.array([0, 4], np.int32), (BATCH, 1)),
        np.full(BATCH, barred, np.int32),
        Tables(mask_words(allowed), biases),
        np.zeros(BATCH, np.int32),
    )


MIXED = {"repetition": 1.3, "presence": 0.3, "frequency": -0.4, "biased": True}


@pytest.mark.parametrize(
    ("settings", "barred", "survivors"),
    [
        ({"repetition": 1.6}, 0, 8),
        ({"repetition": 0.7}, 0, 8),
        ({"presence": 0.8}, 0, 8),
        ({"frequency": 0.6}, 0, 8),
        ({"frequency": -0.6, "presence": -0.3}, 0, 8),
        ({"biased": True}, 0, 8),
        ({}, 1, 6),
        ({"constrained": True}, 0, 5),
        ({"constrained": True, "top_k": 3}, 0, 3),
        (MIXED | {"temperature": 0.8, "top_p": 0.9}, 2, 4),
        (MIXED | {"temperature": 1.5, "top_p": 0.95, "constrained": True}, 1, 4),
    ],
    ids=str,
)
def test_steered_draws_follow_the_distribution(settings, barred, survivors):
    by = one_slot(barred=barred)
    cuts = {name: value for name, value in settings.items() if name in ("top_p", "top_k")}
    changed = steered(PLAIN, by, 0, settings)
    expected = probabilities(changed, settings.get("temperature", 1.0), **cuts)
    assert (expected > 0).sum() == survivors
    plain = probabilities(PLAIN, settings.get("temperature", 1.0), **cuts)
    assert abs(expected - plain).max() > 0.02, "steers too little to be seen"
    assert chance(draw(PLAIN, by=by, **settings), expected) > UNLIKELY


@pytest.mark.parametrize("varied", ["seed", "choice"])
def test_seeds_and_choices_are_fair_streams_too(varied):
    assert chance(draw(PLAIN, varied=varied), probabilities(PLAIN)) > UNLIKELY


def test_successive_tokens_are_independent():
    """Pairs of neighbouring positions follow the product of the distributions."""
    logits = PLAIN[:4]
    one = probabilities(logits)
    tokens = draw(logits)
    pairs = tokens[:-1:2] * 4 + tokens[1::2]
    assert chance(pairs, np.outer(one, one).ravel()) > UNLIKELY


def coarse(tokens):
    """Which group of 4096, which eighth of it, and which eighth of the block: 64 to a group."""
    return tokens // 4096 * 64 + tokens // 512 % 8 * 8 + tokens // 8 % 8


def test_a_token_is_found_anywhere_in_a_vocabulary_of_several_groups():
    V = 9001
    logits = np.random.default_rng(1).normal(0, 1, V)
    expected = np.bincount(coarse(np.arange(V)), probabilities(logits))
    assert chance(coarse(draw(logits)), expected) > UNLIKELY


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 40, "top_p": 0.91}])
def test_a_vocabulary_of_49152(settings):
    """A few hundred tokens all over it share half of the mass, and their thresholds tie."""
    V = 49_152
    random = np.random.default_rng(2)
    logits = random.normal(0, 0.1, V)
    likely = random.choice(V, 300, replace=False)
    logits[likely] = 5 + random.integers(0, 4, 300) / 4
    logits = np.asarray(logits, np.float32)
    cuts = {name: value for name, value in settings.items() if name != "temperature"}
    expected = probabilities(logits, settings.get("temperature", 1.0), **cuts)
    if not cuts:  # the unlikely ones are counted together
        bins = np.where(np.isin(np.arange(V), likely), np.arange(V) // 1024, 48)
    else:
        assert (expected > 0).sum() < 40
        bins = np.arange(V)
    tokens = draw(logits, draws=3_000, batch=20, **settings)
    assert chance(bins[tokens], np.bincount(bins, expected)) > UNLIKELY


def test_a_token_without_weight_is_never_drawn():
    """Over thousands of draws, with holes in front, between and behind."""
    logits = np.full(9000, -np.inf)
    logits[[70, 4000, 4100, 4101, 8200]] = 0
    logits[[71, 8201]] = -200
    assert sorted(set(draw(logits))) == [70, 4000, 4100, 4101, 8200]


def test_uniforms_are_fair_and_inside_their_bounds():
    steps = np.arange(DRAWS, dtype=np.int32)
    numbers = np.asarray(jax.jit(sampling.uniforms)(rows(DRAWS), steps)).astype(np.float64)
    assert (numbers * 2**24 % 2 == 1).all()
    assert 0 < numbers.min() < 1e-3 < 1 - 1e-3 < numbers.max() < 1
    cells = (numbers * 6).astype(int) @ [36, 6, 1]
    assert chance(cells, np.full(216, 1 / 216)) > UNLIKELY


def test_pick_passes_over_empty_masses_at_every_uniform():
    """The extremes of the uniforms, where a rounding error could fall beyond the last mass."""
    pick = jax.jit(sampling.pick)
    random = np.random.default_rng(3)
    masses = random.random((4000, 64)) ** 8 * (random.random((4000, 64)) < 0.3)
    masses[:, 20] += 1e-3
    masses = np.round(masses / masses.sum(axis=1, keepdims=True) * 2**30).astype(np.int32)
    running = np.cumsum(masses.astype(np.float64), axis=1)
    for uniform in (2.0**-24, 0.25, 0.5, 1 - 2.0**-24):
        found = np.asarray(pick(masses, np.full(4000, uniform, np.float32)))
        index = np.arange(4000)
        assert (masses[index, found] > 0).all()
        target = uniform * running[:, -1]
        slack = 1e-5 * running[:, -1]
        assert (running[index, found] > target - slack).all()
        assert (running[index, found] - masses[index, found] < target + slack).all()
