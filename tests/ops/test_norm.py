"""The norms against their formulas, and in which precision they work."""

import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops.norm import layer_norm, rms_norm


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_by_the_formula(shape):
    random = np.random.default_rng(0)
    x, weight = random.standard_normal(shape) * 5, random.standard_normal(shape[-1])
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * weight
    result = rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32), 1e-3)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_eps_keeps_a_row_of_zeros_finite():
    result = rms_norm(jnp.zeros((1, 4)), jnp.ones(4), 1e-5)
    np.testing.assert_array_equal(result, np.zeros((1, 4)))


def test_bfloat16_is_squared_and_averaged_in_float32():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 512)) * 100, jnp.bfloat16)
    result = rms_norm(x, jnp.ones(512), 1e-5)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=2**-8)


def test_an_offset_is_added_to_the_weight():
    random = np.random.default_rng(2)
    x, weight = (jnp.asarray(random.standard_normal(8), jnp.float32) for _ in range(2))
    plain = rms_norm(x, weight + 1, 1e-3)
    np.testing.assert_allclose(rms_norm(x, weight, 1e-3, offset=1.0), plain, rtol=1e-6)


def test_wide_rounds_once_and_plain_twice():
    """Gemma and OLMo 2 multiply before they round, Llama after; both are what their models do."""
    random = np.random.default_rng(3)
    x = jnp.asarray(random.standard_normal((64, 8)), jnp.bfloat16)
    weight = jnp.asarray(1 + random.standard_normal(8) / 8, jnp.float32)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    once = jnp.asarray(exact * np.asarray(weight), jnp.bfloat16)
    twice = jnp.asarray(exact, jnp.bfloat16) * weight.astype(jnp.bfloat16)[None]
    np.testing.assert_array_equal(rms_norm(x, weight, 1e-5, wide=True), once)
    np.testing.assert_array_equal(rms_norm(x, weight, 1e-5), twice)
    assert not np.array_equal(once, twice)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_layer_norm_by_the_formula(shape):
    random = np.random.default_rng(0)
    x = random.standard_normal(shape) * 5 + 2
    weight, bias = random.standard_normal((2, 8))
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * weight + bias
    given = (jnp.asarray(one, jnp.float32) for one in (x, weight, bias))
    np.testing.assert_allclose(layer_norm(*given, 1e-3), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_of_bfloat16_is_averaged_in_float32():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 512)) * 9 + 100, jnp.bfloat16)
    result = layer_norm(x, jnp.ones(512), jnp.zeros(512), 1e-5)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=2**-8, atol=2**-8)
