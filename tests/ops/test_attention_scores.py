"""Soft caps, learned sinks and other scales in attention, against a softmax written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.held import Ring
from tpuinfer.ops import attention

ROWS, KV, GROUP, WIDTH, HEAD, LENGTH = 2, 2, 3, 2, 4, 8
CAP = 2.0
LEARNED = np.array([-1.0, 0.5, 3.0, 0.0, 9.0, -20.0], np.float32)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


Q, K, V = (
    normal(seed, ROWS, KV, size, *rest)
    for seed, size, rest in ((0, GROUP, (WIDTH, HEAD)), (1, LENGTH, (HEAD,)), (2, LENGTH, (HEAD,)))
)
Q *= 3
NEWEST = np.array([5, 2], np.int32)
POSITIONS = np.array([[4, 5], [1, 2]], np.int32)


def written_out(cap, learned):
    """[R, T, K, G, H] in float64: one softmax over what is seen, and a learned score beside it."""
    result = np.zeros((ROWS, WIDTH, KV, GROUP, HEAD))
    for r, t, k, g in np.ndindex(result.shape[:4]):
        seen = slice(0, POSITIONS[r, t] + 1)
        scores = K[r, k, seen].astype(np.float64) @ Q[r, k, g, t]
        if cap is not None:
            scores = cap * np.tanh(scores / cap)
        beside = [] if learned is None else [float(learned[k * GROUP + g])]
        weights = np.exp(np.concatenate([scores, beside]))
        result[r, t, k, g] = weights[: len(scores)] @ V[r, k, seen] / weights.sum()
    return result


@functools.partial(jax.jit, static_argnames=("cap", "block"))
def over_a_ring(newest, learned=None, cap=None, block=4):
    queries = attention.Queries(Q, None, POSITIONS, cap)
    begun = attention.begin(Q, learned)
    seen = attention.attend_ring(begun, queries, Ring(K, V), slots=None, newest=newest, block=block)
    return attention.finish(seen)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("learned", [None, LEARNED], ids=["plain", "sinks"])
@pytest.mark.parametrize("block", [4, 8])
def test_a_ring_by_the_formula(cap, learned, block):
    found = over_a_ring(NEWEST, learned, cap, block)
    np.testing.assert_allclose(found, written_out(cap, learned), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [None, CAP])
@pytest.mark.parametrize("learned", [None, LEARNED], ids=["plain", "sinks"])
def test_a_chunk_by_the_formula(cap, learned):
    """The chunk is tokens 0, 1 of each row, with nothing in the ring before it."""
    q, k, v = Q, K[:, :, :WIDTH], V[:, :, :WIDTH]
    length = np.full(ROWS, WIDTH, np.int32)

    @jax.jit
    def run():
        begun = attention.begin(q, None if learned is None else jnp.asarray(learned))
        return attention.finish(
            attention.attend_chunk(begun, q, attention.Columns(k, v), length, cap=cap)
        )

    for r, t, kh, g in np.ndindex(ROWS, WIDTH, KV, GROUP):
        scores = k[r, kh, : t + 1].astype(np.float64) @ q[r, kh, g, t]
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        beside = 0 if learned is None else np.exp(float(learned[kh * GROUP + g]))
        expected = np.exp(scores) @ v[r, kh, : t + 1] / (np.exp(scores).sum() + beside)
        np.testing.assert_allclose(run()[r, t, kh, g], expected, rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_only_its_learned_sink_gives_zeros():
    found = over_a_ring(np.full(ROWS, -1, np.int32), LEARNED)
    np.testing.assert_array_equal(found, np.zeros(found.shape))


def test_a_scale_of_its_own():
    q = normal(5, 1, 2, 6, 4)
    own = attention.split_heads(jnp.asarray(q), 2, jnp.dtype(jnp.float32), 0.125)
    plain = attention.split_heads(jnp.asarray(q), 2, jnp.dtype(jnp.float32))
    np.testing.assert_allclose(own, plain * 0.25, rtol=1e-6)
