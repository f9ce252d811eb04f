"""Rows of a ring as codes and scales."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tpuinfer.quant.rows import RINGS, is_codes, round_rows

CODES = list(RINGS.values())


def rows(dtype: type = np.float32) -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.standard_normal((3, 5, 2, 16)) * np.exp(random.normal(0, 3, (3, 5, 2, 1)))
    return values.astype(dtype)


def test_only_a_ring_of_codes_has_scales():
    assert [is_codes(dtype) for dtype in ("int8", "float8_e4m3fn", "bfloat16", "float32")] == [
        *(True, True, False, False)
    ]
    kept = round_rows(jnp.asarray(rows()), "bfloat16")
    assert kept.scale is None
    np.testing.assert_array_equal(kept.values, rows().astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
def test_each_row_of_a_head_has_its_own_scale(dtype, kind):
    values = rows(kind)
    found = jax.jit(round_rows, static_argnums=1)(jnp.asarray(values), dtype)
    assert found.values.dtype == dtype
    assert (found.scale.shape, found.scale.dtype) == ((3, 5, 2), jnp.float32)
    exact = values.astype(np.float64)
    most = np.abs(exact).max(axis=-1)
    np.testing.assert_allclose(found.scale, most / (127 if dtype == "int8" else 448), rtol=2e-7)
    made = np.asarray(found.values).astype(np.float64) * np.asarray(found.scale)[..., None]
    # half a step of int8; half of the last of fp8's three bits, or of its least step
    bound = 0.5 / 127 if dtype == "int8" else np.maximum(np.abs(exact) / most[..., None] / 16, 1e-5)
    assert (np.abs(made - exact) <= most[..., None] * (bound + 1e-6)).all()


@pytest.mark.parametrize("dtype", CODES)
def test_what_codes_can_say_comes_back_to_the_bit(dtype):
    codes = np.arange(-127, 128) if dtype == "int8" else np.arange(256, dtype=np.uint8)
    if dtype != "int8":
        codes = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        codes = codes[np.isfinite(codes)]
    values = np.stack([codes, codes[::-1], -codes]).astype(np.float32) * np.float32(0.25)
    found = round_rows(jnp.asarray(values), dtype)
    np.testing.assert_array_equal(found.values.astype(jnp.float32), values * 4)
    np.testing.assert_array_equal(found.scale, np.float32(0.25))


@pytest.mark.parametrize("dtype", CODES)
def test_zero_rows_and_extreme_ones(dtype):
    values = np.zeros((4, 8), np.float32)
    values[1, 3], values[2, 0] = 3e38, -1e-30
    found = round_rows(jnp.asarray(values), dtype)
    made = np.asarray(found.values).astype(np.float32) * np.asarray(found.scale)[:, None]
    np.testing.assert_allclose(made, values, rtol=1e-6)
    assert found.scale[0] == found.scale[3] == 1


@pytest.mark.parametrize("dtype", CODES)
def test_a_row_is_rounded_alone(dtype):
    values = rows().reshape(-1, 16)
    whole = round_rows(jnp.asarray(values), dtype)
    beside = np.concatenate((np.full((1, 16), 1e30, np.float32), values[7:8]))
    alone = round_rows(jnp.asarray(beside), dtype)
    assert np.asarray(alone.values)[1].tobytes() == np.asarray(whole.values)[7].tobytes()
    assert alone.scale[1] == whole.scale[7]
