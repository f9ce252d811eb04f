"""Attention in both directions and pooling, against numpy; nothing leaks out of the padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops.encoder import attend_both_ways, normalise, pool

R, T, N, H = 3, 6, 2, 4
LENGTHS = np.array([6, 1, 4], np.int32)


def arrays(*shape, count=1, seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for _ in range(count)]


def attended(q, k, v):
    scores = np.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), v)


def test_every_token_sees_all_real_ones():
    q, k, v = arrays(R, T, N, H, count=3)
    out = attend_both_ways(*map(jnp.asarray, (q, k, v)), jnp.asarray(LENGTHS))
    for row, length in enumerate(LENGTHS):
        wanted = attended(*(one[row, :length] for one in (q, k, v)))
        np.testing.assert_allclose(out[row, :length], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("junk", [1e30, np.nan, -np.inf])
def test_what_stands_in_the_padding_changes_no_bit(junk):
    q, k, v = arrays(R, T, N, H, count=3)
    lengths = jnp.asarray(LENGTHS)
    clean = attend_both_ways(*map(jnp.asarray, (q, k, v)), lengths)
    for one in (k, v):
        one[np.arange(T)[None, :] >= LENGTHS[:, None]] = junk
    dirty = attend_both_ways(*map(jnp.asarray, (q, k, v)), lengths)
    np.testing.assert_array_equal(clean, dirty)


def test_an_idle_row_is_finite():
    q, k, v = map(jnp.asarray, arrays(1, T, N, H, count=3))
    none = jnp.zeros(1, jnp.int32)
    assert np.isfinite(attend_both_ways(q, k, v, none)).all()
    x = jnp.asarray(arrays(1, T, 8)[0])
    for mode in ("cls", "mean", "mean_sqrt_len", "weighted_mean", "last"):
        assert np.isfinite(normalise(pool(x, none, mode))).all()


def test_bfloat16_sums_in_float32():
    """2,048 equal values: their mean is one of them, which a sum in bfloat16 would miss."""
    wide = 2048
    q = jnp.zeros((1, wide, 1, 4), jnp.bfloat16)
    v = jnp.full((1, wide, 1, 4), 1.25, jnp.bfloat16)
    out = attend_both_ways(q, q, v, jnp.array([wide]))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.25)
    pooled = pool(v[:, :, 0], jnp.array([wide]), "mean")
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled, 1.25)


@pytest.mark.parametrize(
    ("mode", "reference"),
    [
        ("cls", lambda x: x[0]),
        ("last", lambda x: x[-1]),
        ("mean", lambda x: x.mean(0)),
        ("mean_sqrt_len", lambda x: x.sum(0) / np.sqrt(len(x))),
        ("weighted_mean", lambda x: np.average(x, 0, weights=1 + np.arange(len(x)))),
    ],
)
def test_pooling_by_hand(mode, reference):
    (x,) = arrays(R, T, 8, seed=1)
    out = pool(jnp.asarray(x), jnp.asarray(LENGTHS), mode)
    wanted = [reference(x[row, :length]) for row, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(out, np.stack(wanted), rtol=1e-6)


@pytest.mark.parametrize("mode", ["cls", "mean", "mean_sqrt_len", "weighted_mean", "last"])
def test_pooling_ignores_the_padding(mode):
    (x,) = arrays(R, T, 8)
    lengths = jnp.asarray(LENGTHS)
    clean = pool(jnp.asarray(x), lengths, mode)
    x[np.arange(T)[None, :] >= LENGTHS[:, None]] = np.nan
    np.testing.assert_array_equal(clean, pool(jnp.asarray(x), lengths, mode))


def test_normalised_rows_have_length_one_but_for_zeros():
    out = normalise(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(out, [[0.6, 0.8], [0, 0]], rtol=1e-6)
