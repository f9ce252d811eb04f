"""Sampling: the cuts against a stable sort, the draws against their distribution, and the keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_reference import kept_by_sorting, rows

from tpuinfer.ops import sampling
from tpuinfer.ops.sampling import TOP

V = 101
RARE = 1e-7
"""A token that weighs less, next to the most likely one, may round to a share of 0."""

sample = jax.jit(sampling.sample)


@jax.jit
def keep(logits, settings):
    """Which of the V tokens survive the cuts, at temperature 1."""
    weights = sampling.weigh(logits, logits.max(axis=-1), settings.temperature)
    return sampling.cut(weights, settings)[:, : logits.shape[1]] > 0


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
            seen = np.exp(logits[row] - logits[row].max()) > RARE
            np.testing.assert_array_equal(
                np.flatnonzero(result[row] & seen),
                np.flatnonzero(expected & seen),
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
    logits = np.asarray(in_bfloat16(3, 8), np.float32) / 4
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
    logits[2, 63:65] = 1
    logits[3] = -0.0
    logits[3, 70] = 0.0
    logits[4] = -np.inf
    result = sample(logits, rows(8, temperature=0.0), np.zeros(8, np.int32))
    assert result.tokens.tolist() == [17, 0, 63, 0, 0, 0, 0, 0]
    assert not result.logprobs.any()
    assert not result.top_logprobs.any()
    assert (np.asarray(result.top_ids) == -1).all()


@pytest.mark.parametrize("width", [1, 64, 65, 4097, 49_152])
def test_greedy_is_argmax_at_every_width(width):
    logits = np.random.default_rng(width).integers(-9, 9, (8, width)).astype(np.float32)
    result = sample(logits, rows(8, temperature=0.0), np.zeros(8, np.int32))
    np.testing.assert_array_equal(result.tokens, logits.argmax(axis=1))


def test_greedy_rows_are_greedy_beside_sampled_ones():
    logits = flat(2, 8).astype(np.float32)
    mixed = rows(8, temperature=np.array([0, 1] * 4), top_k=np.array([0, 0, 0, 3] * 2))
    tokens = np.asarray(sample(logits, mixed, np.arange(8, dtype=np.int32)).tokens)
    assert tokens[::2].tolist() == logits[::2].argmax(axis=1).tolist()
    assert (tokens[1::2] != logits[1::2].argmax(axis=1)).any()


def test_nothing_in_the_logits_leads_out_of_the_vocabulary():
    """NaN and infinities: some id of the vocabulary, and the other rows as ever."""
    odd = np.zeros((8, V), np.float32)
    odd[0], odd[1], odd[2] = np.nan, -np.inf, np.inf
    odd[3, 40], odd[4, 41], odd[5, :] = np.nan, np.inf, -np.inf
    odd[5, 42] = 0
    odd[6:] = flat(4, 2)
    even = odd.copy()
    even[:6] = 0
    positions = np.arange(8, dtype=np.int32)
    for settings in ({}, {"temperature": 0.0}, {"top_k": 9, "top_p": 0.8, "min_p": 0.01}):
        asked = rows(8, logprobs=5, **settings)
        result, usual = sample(odd, asked, positions), sample(even, asked, positions)
        tokens = np.asarray(result.tokens)
        assert ((tokens >= 0) & (tokens < V)).all()
        assert tokens[4:6].tolist() == [41, 42]
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(usual), strict=True):
            np.testing.assert_array_equal(one[6:], other[6:])


def test_seed_choice_and_position_are_streams_of_their_own():
    """No two of the three do the same: (seed 1, choice 2) is not (seed 2, choice 1)."""
    logits = np.zeros((8, V), np.float32)
    seeds, choices = np.array([1, 2, 1, 1, 2, 3, 3, 2]), np.array([2, 1, 3, 2, 3, 1, 2, 2])
    keys = rows(8, seed=seeds, choice=choices)
    positions = np.array([3, 3, 2, 1, 1, 2, 1, 2], np.int32)
    firsts = [sample(logits, keys, positions + 10 * step).tokens.tolist() for step in range(8)]
    streams = list(zip(*firsts, strict=True))
    assert len(set(streams)) == 8


def varied(count):
    """Rows of every kind, their logits and positions."""
    settings = rows(
        count,
        temperature=np.array([0, 0.7, 1, 0, 1.5, 0.2, 1, 3] * (count // 8)),
        top_k=np.array([0, 0, 40, 3, 0, 0, 5, 0] * (count // 8)),
        top_p=np.array([1, 0.9, 1, 1, 0.5, 1, 0.95, 1] * (count // 8)),
        min_p=np.array([0, 0, 0, 0, 0, 0.1, 0.01, 0] * (count // 8)),
        logprobs=np.array([-1, 0, 20, 5, -1, 1, 3, -1] * (count // 8)),
        seed=np.arange(count) + 2**31,
        choice=np.arange(count) % 3,
    )
    logits = np.asarray(jnp.asarray(flat(5, count) * 2, jnp.bfloat16), np.float32)
    return logits, settings, np.arange(count, dtype=np.int32) * 7


def test_a_row_is_the_same_in_every_company():
    """(seed, choice, position) decide; the row's index and what the others ask for do not."""
    logits, alone, positions = varied(8)
    expected = jax.tree.map(np.asarray, sample(logits, alone, positions))
    random = np.random.default_rng(6)
    for _ in range(12):
        order = random.permutation(8)
        mine = order < 3 if random.random() < 0.5 else order == 0
        company = jax.tree.map(lambda x, order=order: x[order].copy(), alone)
        others = {
            "temperature": random.choice([0, 0.3, 2.0], 8),
            "top_k": random.choice([0, 1, 9], 8),
            "top_p": random.choice([1.0, 0.4], 8),
            "min_p": random.choice([0.0, 0.3], 8),
            "seed": random.integers(0, 2**32, 8),
            "logprobs": random.choice([-1, 0, 7], 8),
        }
        for name, values in others.items():
            getattr(company, name)[~mine] = values[~mine].astype(getattr(company, name).dtype)
        result = sample(logits[order], company, positions[order])
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(one)[mine], other[order[mine]])


@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_row_is_the_same_in_a_batch_of_any_size(count):
    """A prefill of few rows and a narrow decode must agree with the full one."""
    logits, settings, positions = varied(16)
    given = (np.tile(logits, (1, 486)), settings, positions)  # 49,086 tokens, each 486 times
    expected = sample(jnp.asarray(given[0]), *given[1:])
    for start in range(0, 16, count):
        part = jax.tree.map(lambda x, start=start: x[start : start + count], given)
        for one, other in zip(
            jax.tree.leaves(sample(*part)), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(one, other[start : start + count])


def test_the_whole_of_a_row_has_the_same_bits_in_a_batch_of_any_size():
    """A sum of the compiler's own does not: the log-probabilities would show it now and then."""
    total = jax.jit(sampling._sum)
    weights = np.exp(np.random.default_rng(0).normal(-8, 4, (16, 49_152))).astype(np.float32)
    expected = np.asarray(total(weights))
    np.testing.assert_allclose(expected, weights.astype(np.float64).sum(axis=1), rtol=1e-6)
    for count in (1, 2, 4, 8):
        parts = [total(weights[start : start + count]) for start in range(0, 16, count)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def log_softmax(logits):
    wide = logits.astype(np.float64)
    fall = wide - wide.max(axis=1, keepdims=True)
    return fall - np.log(np.exp(fall).sum(axis=1, keepdims=True))


@functools.lru_cache(maxsize=1)
def scored():
    logits = (flat(8, 8) * 10).astype(np.float32)
    asked = rows(
        8,
        temperature=np.array([0, 1, 0.2, 0, 3, 1, 0, 1]),
        top_k=np.array([0, 0, 2, 0, 0, 1, 0, 9]),
        logprobs=np.array([0, 20, 1, -1, 5, 0, 3, -1]),
    )
    return logits, asked, sample(logits, asked, np.arange(8, dtype=np.int32))


def test_logprobs_are_those_of_the_model_not_of_the_cut():
    """Under softmax(logits): temperature and cuts do not enter."""
    logits, asked, result = scored()
    chosen = log_softmax(logits)[np.arange(8), np.asarray(result.tokens)]
    expected = np.where(asked.logprobs >= 0, chosen, 0)
    np.testing.assert_allclose(result.logprobs, expected, rtol=1e-5, atol=1e-5)


def test_the_chosen_token_has_the_same_bits_among_the_top():
    _, _, result = scored()
    rows_of_top, columns = np.nonzero(np.asarray(result.top_ids == result.tokens[:, None]))
    assert {0, 3, 5, 7}.isdisjoint(rows_of_top)
    assert {2, 6} <= set(rows_of_top.tolist())
    np.testing.assert_array_equal(
        np.asarray(result.top_logprobs)[rows_of_top, columns],
        np.asarray(result.logprobs)[rows_of_top],
    )


@pytest.mark.parametrize("make", [flat, few_values, all_equal, with_zeros_of_both_signs])
@pytest.mark.parametrize("width", [V, 13])
def test_the_top_is_that_of_a_stable_sort(make, width):
    asked = [-1, 0, 1, 2, 5, 13, 19, 20]
    logits = np.asarray(make(9, 8), np.float32)[:, :width]
    result = sample(logits, rows(8, logprobs=asked), np.zeros(8, np.int32))
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = np.take_along_axis(log_softmax(logits), order, axis=1)
    assert result.top_ids.shape == result.top_logprobs.shape == (8, TOP)
    for row, count in enumerate(asked):
        told = min(max(count, 0), width)
        assert result.top_ids[row, :told].tolist() == order[row, :told].tolist()
        np.testing.assert_allclose(
            result.top_logprobs[row, :told], expected[row, :told], rtol=1e-5, atol=1e-5
        )
        assert (np.asarray(result.top_ids)[row, told:] == -1).all()
        assert not np.asarray(result.top_logprobs)[row, told:].any()


def test_asking_for_logprobs_changes_no_token():
    logits, asked, result = scored()
    silent = dataclasses.replace(asked, logprobs=np.full(8, -1, np.int32))
    again = sample(logits, silent, np.arange(8, dtype=np.int32))
    np.testing.assert_array_equal(again.tokens, result.tokens)
    assert not again.logprobs.any()
    assert (np.asarray(again.top_ids) == -1).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
def test_the_coldest_temperatures_are_greedy(temperature):
    logits = np.random.default_rng(3).normal(0, 30, (4, 50)).astype(np.float32)
    cold = rows(4, temperature=temperature, top_p=0.9, top_k=7, min_p=0.1)
    tokens = sample(logits, cold, np.arange(4, dtype=np.int32)).tokens
    assert np.array_equal(tokens, logits.argmax(axis=-1))
