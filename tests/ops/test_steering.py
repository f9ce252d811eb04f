"""Steering of logits: each transform against numpy, all together, and rows that ask for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_reference import rows
from steering_reference import mask_words, steered

from tpuinfer.ops import sampling, steering
from tpuinfer.ops.steering import GENERATED, IN_PROMPT, Biases, Steering, Tables

V, SLOTS, ENTRIES = 101, 8, 6

steer = jax.jit(steering.steer)
sample = jax.jit(sampling.sample)

ASKED = {
    "repetition": [1, 1.3, 1, 1, 1.3, 1, 1, 0.7],
    "presence": [0, 0, 0.5, 0, -1.5, 0, 0, 0.25],
    "frequency": [0, 0, 0, 0.4, 2, 0, 0, -0.5],
    "biased": [0, 0, 0, 0, 1, 1, 0, 0],
    "constrained": [0, 0, 0, 0, 1, 0, 1, 0],
}
BARRED = np.array([0, 0, 0, 0, 0, 0, 0, 3], np.int32)
"""Row 0 asks for nothing; each kind is there alone and beside others."""


def case(seed=0):
    """Logits, and what steers them: every row has counts, biases and a mask, asked for or not."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (SLOTS, V)).astype(np.float32)
    counts = random.choice([0, 0, IN_PROMPT, GENERATED, IN_PROMPT + 3 * GENERATED], (SLOTS, V))
    ids = np.stack([random.permutation(V)[:ENTRIES] for _ in range(SLOTS)]).astype(np.int32)
    ids[:, -1] = -1
    values = random.normal(0, 5, ids.shape).astype(np.float32)
    stops = np.stack([random.permutation(V)[:3] for _ in range(SLOTS)]).astype(np.int32)
    stops[:, -1] = -1
    masks = mask_words(random.random((SLOTS, V)) < 0.3)
    tables = Tables(masks, Biases(ids, values))
    return logits, Steering(counts.astype(np.int32), stops, BARRED, tables)


def test_all_transforms_are_those_of_numpy():
    for seed in range(20):
        logits, by = case(seed)
        found = np.asarray(steer(logits, rows(SLOTS, **ASKED), by))
        for row in range(SLOTS):
            own = {name: values[row] for name, values in ASKED.items()}
            expected = steered(logits[row], by, row, own)
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[0], logits[0])


@pytest.mark.parametrize("kind", [*ASKED, "barred", "nothing"])
def test_each_kind_alone_changes_its_rows_and_no_others(kind):
    logits, by = case(1)
    asked = {kind: ASKED[kind]} if kind in ASKED else {}
    by = by.replace(barred=BARRED * (kind == "barred"))
    found = np.asarray(steer(logits, rows(SLOTS, **asked), by))
    who = np.flatnonzero((found != logits).any(axis=1)).tolist()
    wanted = by.barred != 0
    if asked:
        wanted = np.asarray(asked[kind]) != np.asarray(getattr(rows(1), kind))[0]
    assert who == np.flatnonzero(wanted).tolist()
    for row in who:
        own = {name: values[row] for name, values in asked.items()}
        np.testing.assert_allclose(found[row], steered(logits[row], by, row, own), rtol=1e-5)


def test_a_row_is_the_same_in_every_company_and_from_any_slot():
    """Rows that name their slots, in any order and number, beside rows that ask for more."""
    logits, by = case(2)
    asked = rows(SLOTS, **ASKED)
    expected = np.asarray(steer(logits, asked, by))
    for order in ([3], [7, 0], [4, 2, 6, 1], [*range(SLOTS)][::-1]):
        at = np.array(order)
        some = Steering(by.counts, by.stops[at], by.barred[at], by.tables, at.astype(np.int32))
        found = steer(logits[at], jax.tree.map(lambda x, at=at: x[at], asked), some)
        np.testing.assert_array_equal(found, expected[at])


def test_a_constrained_row_only_gives_what_its_mask_names():
    """Whatever its logits are: the most likely token is not allowed, is NaN, or nothing is left."""
    allowed = np.zeros((SLOTS, V), bool)
    allowed[:, [40, 64, 100]] = True
    logits = np.zeros((SLOTS, V), np.float32)
    logits[1], logits[2], logits[3] = np.nan, -np.inf, np.inf
    logits[4, [40, 64]], logits[5, 100], logits[6, 40] = -np.inf, np.nan, np.inf
    logits[7, 3] = np.inf
    _, by = case()
    by = by.replace(tables=by.tables.replace(masks=mask_words(allowed)), barred=BARRED * 0)
    for cuts in ({}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.9, "min_p": 0.5}):
        settings = rows(SLOTS, constrained=True, **cuts)
        picked = steer(logits, settings, by)
        for position in range(20):
            positions = np.full(SLOTS, position, np.int32)
            tokens = sample(logits, settings, positions, picked).tokens.tolist()
            assert set(tokens) <= {40, 64, 100}
            assert tokens[4] == 100
            assert tokens[6] == 40


def test_nothing_in_the_logits_leads_out_of_the_vocabulary():
    odd = np.full((SLOTS, V), np.nan, np.float32)
    odd[1], odd[2] = -np.inf, np.inf
    _, by = case()
    settings = rows(SLOTS, **ASKED, temperature=[0, 1] * 4)
    found = steer(odd, settings, by)
    tokens = np.asarray(sample(odd, settings, np.arange(SLOTS, dtype=np.int32), found).tokens)
    assert ((tokens >= 0) & (tokens < V)).all()


def test_barred_ends_are_never_picked_even_if_nothing_is_as_likely():
    logits, by = case(3)
    stops = by.stops[7][by.stops[7] >= 0]
    logits[7, stops] = 50
    found = np.asarray(steer(logits, rows(SLOTS), by))
    assert (found[7, stops] == -np.inf).all()
    assert (found[:7] == logits[:7]).all()


def test_logprobs_are_those_before_steering():
    logits, by = case(4)
    settings = rows(SLOTS, **ASKED, temperature=0.0, logprobs=20)
    picked = steer(logits, settings, by)
    positions = np.zeros(SLOTS, np.int32)
    result = sample(logits, settings, positions, picked)
    assert result.tokens.tolist() == np.asarray(picked).argmax(axis=1).tolist()
    assert (np.asarray(result.tokens) != logits.argmax(axis=1)).any()
    plain = sampling.score(jnp.asarray(logits), result.tokens, settings.logprobs)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)
    wide = logits.astype(np.float64)
    total = np.log(np.exp(wide).sum(axis=1))
    chosen = wide[np.arange(SLOTS), np.asarray(result.tokens)]
    np.testing.assert_allclose(result.logprobs, chosen - total, rtol=1e-5, atol=1e-5)
