"""Steering and cuts against the processors of transformers, on the same logits.

It has none for presence and frequency penalties: those are held against numpy, in tests/ops.
"""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

import torch
from transformers.generation import logits_process as processors

from tpuinfer.ops import sampling, steering
from tpuinfer.ops.sampling import SamplingRows
from tpuinfer.ops.steering import GENERATED, IN_PROMPT, Biases, Steering, Tables

pytestmark = pytest.mark.parity

R = 8
WIDTHS = (64, 257)
ENDS = (3, 41)
BIASES = {0: 4.5, 7: -2.25, 41: 100.0, 63: -100.0}
PROMPT, ANSWER = 9, 4
"""Lengths of the tokens that the penalties see."""

RARE = 1e-8
"""Of the whole; a token that is less likely may round to a share of 0."""

steer = jax.jit(steering.steer)


@jax.jit
def shares(logits, rows):
    """What is drawn from: the weights that the cuts leave, [R, V]."""
    weights = sampling.weigh(logits, logits.max(axis=-1), rows.temperature)
    return sampling.cut(weights, rows)[:, : logits.shape[1]]


def distinct(V):
    """No two logits of a row are equal, nor nearly."""
    random = np.random.default_rng(V)
    levels = np.linspace(-6, 6, V) + random.uniform(-1 / V, 1 / V, V)
    return np.stack([random.permutation(levels) for _ in range(R)]).astype(np.float32)


def tied(V):
    """Few values, zeros among them."""
    return np.random.default_rng(V).integers(-3, 4, (R, V)).astype(np.float32)


def rows(**fields):
    """R rows that ask for nothing but `fields`."""
    plain = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "presence": 0.0, "frequency": 0.0}
    floats = {**plain, "repetition": 1.0}
    whole = {"top_k": 0, "choice": 0, "logprobs": -1}
    kinds = {
        **dict.fromkeys(floats, np.float32),
        **dict.fromkeys(whole, np.int32),
        "seed": np.uint32,
        **dict.fromkeys(("biased", "constrained"), np.bool_),
    }
    values = {**floats, **whole, "seed": 0, "biased": False, "constrained": False, **fields}
    return SamplingRows(**{name: np.full(R, values[name], kind) for name, kind in kinds.items()})


def history(V):
    """Ids [R, PROMPT + ANSWER] of prompts and the answers so far; some are in both, or twice."""
    return np.random.default_rng(V + 1).integers(0, V // 4, (R, PROMPT + ANSWER))


def steering_of(V, missing=0):
    """What steers the rows: their histories' counts, BIASES, and ENDS barred for `missing`."""
    counts = np.zeros((R, V), np.int32)
    for row, ids in enumerate(history(V)):
        counts[row, ids[:PROMPT]] = IN_PROMPT
        np.add.at(counts[row], ids[PROMPT:], GENERATED)
    biases = Biases(
        np.tile(np.array(list(BIASES), np.int32), (R, 1)),
        np.tile(np.array(list(BIASES.values()), np.float32), (R, 1)),
    )
    masks = np.zeros((R, -(-V // steering.WORD)), np.int32)
    stops = np.tile(np.array([*ENDS, -1], np.int32), (R, 1))
    return Steering(counts, stops, np.full(R, missing, np.int32), Tables(masks, biases))


def theirs(logits, *chain, ids=None):
    """What transformers makes of the logits: [R, V] float32."""
    ids = history(logits.shape[1]) if ids is None else ids
    return processors.LogitsProcessorList(chain)(torch.tensor(ids), torch.tensor(logits)).numpy()


def softmax(logits):
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return wide / wide.sum(axis=1, keepdims=True)


def assert_drawn_alike(logits, asked, expected):
    """The same tokens survive, with the same probabilities."""
    own, wanted = np.asarray(shares(logits, asked), np.float64), softmax(expected)
    likely = softmax(logits) > RARE
    np.testing.assert_array_equal((own > 0) & likely, (wanted > 0) & likely)
    assert (own > 0).any(axis=1).all()
    np.testing.assert_allclose(own / own.sum(axis=1, keepdims=True), wanted, atol=1e-6)


def bias_of_theirs():
    return processors.SequenceBiasLogitsProcessor([[[token], add] for token, add in BIASES.items()])


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("make", [distinct, tied])
@pytest.mark.parametrize("penalty", [0.6, 1.3, 2.0])
def test_repetition_penalty(V, make, penalty):
    logits = make(V)
    found = np.asarray(steer(logits, rows(repetition=penalty), steering_of(V)))
    expected = theirs(logits, processors.RepetitionPenaltyLogitsProcessor(penalty))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found != logits).any(axis=1).all()


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("make", [distinct, tied])
def test_logit_bias(V, make):
    logits = make(V)
    found = np.asarray(steer(logits, rows(biased=True), steering_of(V)))
    np.testing.assert_array_equal(found, theirs(logits, bias_of_theirs()))


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("done", [0, 3, 4, 6])
def test_min_tokens(V, done):
    """Both count the tokens that are there: with 4 wanted, a fifth may end the answer."""
    logits, wanted = distinct(V), 4
    found = np.asarray(steer(logits, rows(), steering_of(V, max(wanted - done, 0))))
    ids = np.zeros((R, PROMPT + done), np.int64)
    least = processors.MinNewTokensLengthLogitsProcessor(PROMPT, wanted, list(ENDS))
    np.testing.assert_array_equal(found, theirs(logits, least, ids=ids))
    assert np.isneginf(found[:, list(ENDS)]).all() == (done < wanted)


@pytest.mark.parametrize("V", WIDTHS)
def test_barred_tokens_are_suppressed(V):
    logits = tied(V)
    found = np.asarray(steer(logits, rows(), steering_of(V, 1)))
    suppress = processors.SuppressTokensLogitsProcessor(list(ENDS))
    np.testing.assert_array_equal(found, theirs(logits, suppress))


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("make", [distinct, tied])
@pytest.mark.parametrize("temperature", [0.7, 1.9])
def test_temperature(V, make, temperature):
    logits = make(V)
    expected = theirs(logits, processors.TemperatureLogitsWarper(temperature))
    assert_drawn_alike(logits, rows(temperature=temperature), expected)


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("make", [distinct, tied])
@pytest.mark.parametrize("min_p", [0.01, 0.3, 0.9])
def test_min_p(V, make, min_p):
    logits = make(V)
    expected = theirs(logits, processors.MinPLogitsWarper(min_p))
    assert_drawn_alike(logits, rows(min_p=min_p), expected)


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("k", [1, 5, 50, 1000])
def test_top_k(V, k):
    logits = distinct(V)
    assert_drawn_alike(logits, rows(top_k=k), theirs(logits, processors.TopKLogitsWarper(k)))


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_keeps_k_of_the_ties_that_they_all_keep(V, k):
    """Transformers keeps whatever ties with the k-th; here the lowest ids go first."""
    logits = tied(V)
    kept = np.asarray(shares(logits, rows(top_k=k))) > 0
    assert not (kept & np.isneginf(theirs(logits, processors.TopKLogitsWarper(k)))).any()
    assert kept.sum(axis=1).tolist() == [k] * R


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 0.99])
def test_top_p(V, p):
    logits = distinct(V)
    assert_drawn_alike(logits, rows(top_p=p), theirs(logits, processors.TopPLogitsWarper(p)))


@pytest.mark.parametrize("V", WIDTHS)
def test_all_in_a_chain(V):
    """In the order that this engine documents."""
    logits = distinct(V)
    asked = rows(repetition=1.3, biased=True, temperature=1.4, min_p=0.002, top_k=30, top_p=0.93)
    by = steering_of(V, 2)
    by = by.replace(barred=np.array([0, 2] * (R // 2), np.int32))
    steered = np.asarray(steer(logits, asked, by))
    warpers = (
        processors.TemperatureLogitsWarper(1.4),
        processors.MinPLogitsWarper(0.002),
        processors.TopKLogitsWarper(30),
        processors.TopPLogitsWarper(0.93),
    )
    changed = (processors.RepetitionPenaltyLogitsProcessor(1.3), bias_of_theirs())
    free = theirs(logits, *changed, *warpers)
    barred = processors.SuppressTokensLogitsProcessor(list(ENDS))
    kept = theirs(logits, *changed, barred, *warpers)
    expected = np.where((by.barred > 0)[:, None], kept, free)
    assert_drawn_alike(steered, asked, expected)
    assert np.isneginf(expected).any(axis=1).all()
