"""Sampling: the cuts against a stable sort, the draws against their distribution, and the keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops import sampling
from tpuinfer.ops.sampling import SamplingRows

V = 101
NEAR = 1e-5
"""A cut that falls closer than this to a boundary may go either way in float32."""

keep, sample = jax.jit(sampling.keep), jax.jit(sampling.sample)


def rows(count, *, seed=0, **fields):
    """Rows that sample plainly at temperature 1, but for `fields`."""
    values = {
        "temperature": 1.0,
        "top_p": 1.0,
        "min_p": 0.0,
        "top_k": 0,
        "seed": seed,
        "choice": 0,
        "logprobs": False,
        **fields,
    }
    dtypes = {"top_k": np.int32, "seed": np.uint32, "choice": np.int32, "logprobs": bool}
    return SamplingRows(
        **{
            name: np.broadcast_to(np.asarray(value, dtypes.get(name, np.float32)), (count,))
            for name, value in values.items()
        }
    )


def kept_by_sorting(logits, top_k, top_p, min_p):
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


def flat(seed, count):
    return np.random.default_rng(seed).standard_normal((count, V)) * 2


def in_bfloat16(seed, count):
    return jnp.asarray(flat(seed, count) * 4, jnp.bfloat16)


def few_values(seed, count):
    return np.random.default_rng(seed).integers(-2, 3, (count, V))


def all_equal(seed, count):
    return np.full((count, V), 3.0 - seed)


def with_holes(seed, count):
    random = np.random.default_rng(seed)
    return np.where(random.random((count, V)) < 0.8, -np.inf, few_values(seed, count))


def with_zeros_of_both_signs(seed, count):
    return np.random.default_rng(seed).choice([-0.0, 0.0, 1.0], (count, V))


@pytest.mark.parametrize(
    "make",
    [flat, in_bfloat16, few_values, all_equal, with_holes, with_zeros_of_both_signs],
)
def test_the_cuts_are_those_of_a_stable_sort(make):
    count = 400
    random = np.random.default_rng(7)
    logits = np.asarray(make(1, count), np.float32)
    k = random.choice([0, 0, 1, 2, 5, 17, V - 1, V, 1000], count)
    p = np.where(random.random(count) < 0.3, 1, random.uniform(0.001, 0.999, count))
    m = np.where(random.random(count) < 0.5, 0, random.uniform(0.0, 1.0, count))
    p, m = p.astype(np.float32), m.astype(np.float32)
    result = np.asarray(keep(logits, rows(count, top_k=k, top_p=p, min_p=m)))
    clear_rows = 0
    for row in range(count):
        expected, clear = kept_by_sorting(logits[row], int(k[row]), float(p[row]), float(m[row]))
        if clear:
            clear_rows += 1
            np.testing.assert_array_equal(
                np.flatnonzero(result[row] & np.isfinite(logits[row])),
                np.flatnonzero(expected & np.isfinite(logits[row])),
                err_msg=f"row {row}: top_k {k[row]}, top_p {p[row]}, min_p {m[row]}",
            )
    assert clear_rows > 0.9 * count
    assert result.any(axis=1).all()


def test_the_extremes_keep_the_most_likely_token():
    logits = np.zeros((8, V), np.float32)
    logits[:, [30, 70]] = 3

    def kept(**fields):
        result = np.asarray(keep(logits, rows(8, **fields)))
        assert (result == result[:1]).all()
        return np.flatnonzero(result[0]).tolist()

    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0, "top_k": 1}):
        assert kept(**fields) == [30]
    assert kept(min_p=1.0) == [30, 70]
    assert kept() == list(range(V))


def test_a_row_is_cut_as_if_it_were_alone():
    logits = np.asarray(in_bfloat16(3, 8), np.float32)
    fields = {
        "top_k": np.array([0, 5, 0, 0, 9, 3, 0, 0]),
        "top_p": np.array([1, 1, 0.7, 1, 0.5, 1, 0.2, 1]),
        "min_p": np.array([0, 0, 0, 0.2, 0.1, 0, 0, 0]),
    }
    together = np.asarray(keep(logits, rows(8, **fields)))
    for row in range(8):
        one = {name: values[row] for name, values in fields.items()}
        alone = keep(logits[[row] * 8], rows(8, **one))
        np.testing.assert_array_equal(together[row], alone[0])
    assert together.sum(axis=1)[0] == together.sum(axis=1)[7] == V
    assert (together.sum(axis=1)[1:7] < V).all()


def test_greedy_ties_go_to_the_lowest_id():
    logits = np.zeros((8, V), np.float32)
    logits[0, [90, 17, 18]] = 5
    logits[1, [V - 1, 0]] = 1
    tokens, logprobs = sample(logits, rows(8, temperature=0.0), np.zeros(8, np.int32))
    assert tokens.tolist() == [17] + [0] * 7
    assert logprobs.tolist() == [0] * 8


def test_greedy_rows_are_greedy_beside_sampled_ones():
    logits = flat(2, 8).astype(np.float32)
    mixed = rows(8, temperature=np.array([0, 1] * 4), top_k=np.array([0, 0, 0, 3] * 2))
    tokens, _ = sample(logits, mixed, np.arange(8, dtype=np.int32))
    assert tokens[::2].tolist() == logits[::2].argmax(axis=1).tolist()


def chi_square(tokens, probabilities):
    """How far the counts are from the expected ones, in standard deviations of chi square."""
    expected = probabilities * len(tokens)
    assert expected[probabilities > 0].min() > 5, "too few draws to judge"
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    live = probabilities > 0
    statistic = ((counts[live] - expected[live]) ** 2 / expected[live]).sum()
    freedom = live.sum() - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


DRAWS = 4000


@pytest.mark.parametrize(
    ("temperature", "cut"),
    [(1.0, {}), (0.5, {}), (2.0, {"top_k": 3}), (1.0, {"top_p": 0.7}), (1.0, {"min_p": 0.2})],
)
@pytest.mark.parametrize("varied", ["positions", "seed", "choice"])
def test_draws_follow_the_distribution(temperature, cut, varied):
    """Over positions of one row, over seeds, and over choices: each must be a fair stream."""
    logits = np.log(np.array([0.4, 0.05, 0.25, 0.1, 0.15, 0.05], np.float32))
    kept, clear = kept_by_sorting(
        logits / temperature, cut.get("top_k", 0), cut.get("top_p", 1), cut.get("min_p", 0)
    )
    assert clear
    probabilities = np.where(kept, np.exp(logits.astype(np.float64) / temperature), 0)
    probabilities /= probabilities.sum()
    own = {"temperature": temperature, "seed": 5, **cut}
    positions = np.full(DRAWS, 9, np.int32)
    if varied == "positions":
        positions = np.arange(DRAWS, dtype=np.int32)
    else:
        own[varied] = np.arange(DRAWS)
    tokens, _ = sample(np.broadcast_to(logits, (DRAWS, 6)), rows(DRAWS, **own), positions)
    assert abs(chi_square(np.asarray(tokens), probabilities)) < 4


def test_seed_choice_and_position_are_streams_of_their_own():
    """No two of the three do the same: (seed 1, choice 2) is not (seed 2, choice 1)."""
    logits = np.zeros((8, V), np.float32)
    seeds, choices = np.array([1, 2, 1, 1, 2, 3, 3, 2]), np.array([2, 1, 3, 2, 3, 1, 2, 2])
    keys = rows(8, seed=seeds, choice=choices)
    positions = np.array([3, 3, 2, 1, 1, 2, 1, 2], np.int32)
    firsts = [sample(logits, keys, positions + 10 * step)[0].tolist() for step in range(8)]
    streams = list(zip(*firsts, strict=True))
    assert len(set(streams)) == 8


def test_the_token_of_a_key_is_the_same_in_every_company():
    """(seed, choice, position) decide; the row's index and what the others ask for do not."""
    logits = flat(5, 8).astype(np.float32)
    random = np.random.default_rng(6)
    alone = rows(8, seed=np.arange(8) + 2**31, choice=np.arange(8) % 3, top_p=0.9, logprobs=True)
    positions = np.arange(8, dtype=np.int32) * 7
    tokens, logprobs = map(np.asarray, sample(logits, alone, positions))
    for _ in range(10):
        order = random.permutation(8)
        mine = order < 3
        company = jax.tree.map(lambda x, order=order: x[order].copy(), alone)
        others = {
            "temperature": random.choice([0, 0.3, 2.0], 8),
            "top_k": random.choice([0, 1, 9], 8),
            "top_p": random.choice([1.0, 0.4], 8),
            "min_p": random.choice([0.0, 0.3], 8),
            "seed": random.integers(0, 2**32, 8),
            "logprobs": random.random(8) < 0.5,
        }
        for name, values in others.items():
            getattr(company, name)[~mine] = values[~mine].astype(getattr(company, name).dtype)
        result, scores = map(np.asarray, sample(logits[order], company, positions[order]))
        np.testing.assert_array_equal(result[mine], tokens[order[mine]])
        np.testing.assert_array_equal(scores[mine], logprobs[order[mine]])


@functools.lru_cache(maxsize=1)
def scored():
    logits = (flat(8, 8) * 10).astype(np.float32)
    asked = rows(
        8,
        temperature=np.array([0, 1, 0.2, 0, 3, 1, 0, 1]),
        top_k=np.array([0, 0, 2, 0, 0, 1, 0, 9]),
        logprobs=np.array([1, 1, 1, 0, 1, 1, 1, 0]),
    )
    return logits, asked, sample(logits, asked, np.arange(8, dtype=np.int32))


def test_logprobs_are_those_of_the_model_not_of_the_cut():
    """Under softmax(logits): temperature and cuts do not enter."""
    logits, asked, (tokens, logprobs) = scored()
    wide = logits.astype(np.float64)
    best = wide.max(axis=1)
    total = best + np.log(np.exp(wide - best[:, None]).sum(axis=1))
    expected = np.where(asked.logprobs, wide[np.arange(8), np.asarray(tokens)] - total, 0)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_asking_for_logprobs_changes_no_token():
    logits, asked, (tokens, _) = scored()
    silent = dataclasses.replace(asked, logprobs=np.zeros(8, bool))
    again, nothing = sample(logits, silent, np.arange(8, dtype=np.int32))
    np.testing.assert_array_equal(again, tokens)
    assert not nothing.any()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
def test_the_coldest_temperatures_are_greedy_and_finite(temperature):
    logits = np.random.default_rng(3).normal(0, 30, (4, 50)).astype(np.float32)
    cold = rows(4, temperature=temperature, top_p=0.9, top_k=7, min_p=0.1)
    tokens, _ = sample(logits, cold, np.arange(4, dtype=np.int32))
    assert np.array_equal(tokens, logits.argmax(axis=-1))
