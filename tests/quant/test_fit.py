"""Codes and scales against formulas in float64, and the same whatever compiles them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, dequantise, pack, unpack
from tpuinfer.quant.schemes import Scheme

ULP = 2.0**-23
FOUR = ("int4:32", "int4z:32", "int4:128", "int4z:8")
ALL = ("int8", "int8:32", "fp8", "fp8:16", *FOUR)

compiled = jax.jit(fit.quantise, static_argnums=(1, 2))


def draw(rows: int = 64, width: int = 256, seed: int = 0) -> np.ndarray:
    """Rows of very different sizes, with a few outliers."""
    random = np.random.default_rng(seed)
    values = random.standard_t(4, (rows, width)) * np.exp(random.normal(0, 3, (rows, 1)))
    return values.astype(np.float32)


def quantised(values: np.ndarray, word: str) -> QArray:
    return compiled(jnp.asarray(values), Scheme.parse(word), 1)


def grouped(values: np.ndarray, word: str) -> np.ndarray:
    """Rows [R, W] as float64 [R, G, S]; G = 1 where a row has one scale."""
    return values.astype(np.float64).reshape(
        len(values), -1, Scheme.parse(word).group or values.shape[-1]
    )


def bits(value: QArray) -> list[bytes]:
    return [np.asarray(part).tobytes() for part in jax.tree.leaves(value)]


@pytest.mark.parametrize("word", ["int8", "int8:32", "w8a8"])
def test_int8_is_the_nearest_of_255_steps_of_the_largest(word):
    values = draw()
    found = quantised(values, word)
    rows = grouped(values, word)
    scale = np.abs(rows).max(axis=-1) / 127
    np.testing.assert_allclose(found.scale.reshape(scale.shape), scale, rtol=2 * ULP)
    codes = np.asarray(found.values, np.float64).reshape(rows.shape)
    exact = rows / scale[..., None]
    assert np.abs(codes).max(axis=-1).min() == 127
    np.testing.assert_array_less(np.abs(codes - exact), 0.5 + 1e-4)
    clear = np.abs(exact - np.trunc(exact) - 0.5 * np.sign(exact)) > 1e-4
    np.testing.assert_array_equal(codes[clear], np.rint(exact)[clear])


def test_fp8_is_the_cast_of_the_scaled_row():
    values = draw()
    found = quantised(values, "fp8")
    scale = np.abs(values.astype(np.float64)).max(axis=-1) / 448
    np.testing.assert_allclose(found.scale, scale, rtol=2 * ULP)
    exact = values / scale[:, None]
    wanted = exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    codes = np.asarray(found.values).astype(np.float64)
    assert np.abs(codes).max() == 448
    differ = codes != wanted
    # of two neighbours that are equally near to float32, either may be taken
    np.testing.assert_allclose(
        np.abs(codes - exact)[differ], np.abs(wanted - exact)[differ], rtol=1e-4
    )
    assert differ.mean() < 1e-3


def nearest_in_the_widest_range(rows: np.ndarray, has_zero: bool) -> np.ndarray:
    """What plain rounding makes of groups: 15 steps from the least to the largest, or +-7."""
    least, most = rows.min(axis=-1, keepdims=True), rows.max(axis=-1, keepdims=True)
    if has_zero:
        step = np.where(most == least, 1, (most - least) / 15)
        return np.clip(np.rint((rows - least) / step), 0, 15) * step + least
    largest = np.maximum(-least, most)
    step = np.where(largest == 0, 1, largest / 7)
    return np.clip(np.rint(rows / step), -8, 7) * step


@pytest.mark.parametrize("word", FOUR)
def test_four_bits_never_lose_to_plain_rounding(word):
    values = draw(256)
    rows = grouped(values, word)
    made = np.asarray(dequantise(quantised(values, word)), np.float64).reshape(rows.shape)
    plain = nearest_in_the_widest_range(rows, word.startswith("int4z"))
    error, bound = (np.square(one - rows).sum(axis=-1) for one in (made, plain))
    assert (error <= bound * (1 + 1e-4)).all()
    assert error.sum() < 0.97 * bound.sum()  # and the search is worth its while


@pytest.mark.parametrize("word", FOUR)
def test_codes_are_the_nearest_for_their_scale(word):
    values = draw(32)
    found = quantised(values, word)
    rows = grouped(values, word)
    scale = np.asarray(found.scale, np.float64)[..., None]
    zero = 0 if found.zero is None else np.asarray(found.zero, np.float64)[..., None]
    exact = np.clip((rows - zero) / scale, -8, 7)
    assert np.abs(np.asarray(found.values).astype(np.float64) - exact).max() < 0.5 + 1e-4


def test_a_row_of_sixteen_equal_steps_is_kept_exactly():
    steps = np.arange(-8, 8, dtype=np.float32)
    row = np.concatenate((steps, steps[::-1]))[None]
    for sign in (1, -1):  # -8 is the extreme, of which there is no other sign
        np.testing.assert_array_equal(dequantise(quantised(sign * row, "int4:32")), sign * row)
    np.testing.assert_allclose(
        dequantise(quantised(3 * row + 40, "int4z:32")), 3 * row + 40, rtol=2 * ULP
    )


@pytest.mark.parametrize("word", ALL)
def test_zero_rows_huge_rows_and_outliers(word):
    values = np.zeros((7, 256), np.float32)
    values[1] = 3.0  # a constant
    values[2] = np.linspace(-1, 1, 256) * np.float32(3e38)
    values[3] = np.linspace(-1, 1, 256) * np.float32(1e-30)
    values[4] = np.linspace(-1, 1, 256)
    values[4, 9] = 1e30
    values[5, 0] = -np.finfo(np.float32).max
    values[6] = np.linspace(1, 2, 256)
    made = np.asarray(dequantise(quantised(values, word)))
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[0], 0)
    assert not np.signbit(made[0]).any()
    np.testing.assert_allclose(made[4, 9], 1e30, rtol=0.07)
    for row in (1, 2, 3, 5, 6):
        far = np.abs(values[row]).max()
        coarse = {"int8": 0.005, "fp8": 0.04}.get(word.split(":")[0], 0.08)
        np.testing.assert_allclose(made[row] / far, values[row] / far, atol=coarse)


finite = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: x if abs(x) > 2.0**-100 else 0.0)
"""Of sizes whose fractions are numbers too: the CPU makes 0 of what is below 2**-126."""


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (4, 16), elements=finite))
def test_int8_is_within_half_a_step(values):
    found = quantised(values, "int8")
    step = np.asarray(found.scale, np.float64)[:, None]
    error = np.abs(np.asarray(dequantise(found), np.float64) - values)
    assert (error <= step * (0.5 + 127 * 2 * ULP)).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (4, 16), elements=finite), st.sampled_from(["int4:16", "int4z:16"]))
def test_four_bits_of_any_row_are_no_worse_than_plain_ones(values, word):
    rows = grouped(values, word)
    found = quantised(values, word)
    made = np.asarray(dequantise(found), np.float64).reshape(rows.shape)
    assert np.isfinite(made).all()
    plain = nearest_in_the_widest_range(rows, word == "int4z:16")
    error, bound = (np.sqrt(np.square(one - rows).sum(axis=-1)) for one in (made, plain))
    rounding = 16 * 16 * ULP * np.abs(rows).max(axis=-1)
    assert (error <= bound * (1 + 1e-4) + rounding).all()


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        *(("int8", jnp.bfloat16), ("fp8", jnp.float32), ("int8:32", jnp.float32)),
        *(("int4:32", jnp.float32), ("int4z:32", jnp.float32), ("int4z:8", jnp.bfloat16)),
    ],
)
def test_the_codes_are_the_same_on_every_mesh_and_not_compiled(word, dtype):
    values = jnp.asarray(draw(32), dtype)
    scheme = Scheme.parse(word)
    wanted = bits(compiled(values, scheme, 1))
    assert bits(fit.quantise(values, scheme, 1)) == wanted
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for spec in (("model", None), (None, "model")):
        placed = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
        assert bits(compiled(placed, scheme, 1)) == wanted, spec


@pytest.mark.parametrize("word", ["int8", "fp8:16", "int4:32", "int4z:32"])
def test_a_row_is_worked_on_alone(word):
    values = draw(8)
    others = np.concatenate((values[3:4], np.full((1, 256), 1e30, np.float32), -values[:2]))
    whole, few = quantised(values, word), quantised(others, word)
    assert bits(jax.tree.map(lambda part: part[3], whole)) == bits(
        jax.tree.map(lambda part: part[0], few)
    )


def test_several_contracted_dimensions_are_one_row():
    values = draw(6, 32)
    for word in ("int8", "int4z:16"):
        flat = quantised(values, word)
        cubic = compiled(jnp.asarray(values.reshape(2, 3, 4, 8)), Scheme.parse(word), 2)
        np.testing.assert_array_equal(dequantise(cubic).reshape(6, 32), dequantise(flat))
        assert cubic.scale.shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("stored", "wanted"), [("int8", "w8a8"), ("w8a8", "int8"), ("int4:16", "int4:16")]
)
def test_the_same_codes_are_kept_as_they_are(stored, wanted):
    value = quantised(draw(6, 32), stored)
    again = fit.requantise(value, Scheme.parse(wanted), (6, 32))
    assert fit.scheme_of(again) == Scheme.parse(wanted)
    assert bits(again) == bits(value)


def test_another_scheme_is_fitted_to_what_the_codes_stand_for():
    shape = (2, 3, 4, 8)
    value = fit.quantise(jnp.asarray(draw(6, 32).reshape(shape)), Scheme.parse("int4:16"), 2)
    again = fit.requantise(value, Scheme.parse("int8"), shape)
    wanted = fit.quantise(dequantise(value).reshape(shape), Scheme.parse("int8"), 2)
    assert again.values.shape == shape
    assert bits(again) == bits(wanted)


def test_every_pair_of_codes_survives_packing():
    codes = np.arange(-8, 8)
    pairs = np.stack(np.meshgrid(codes, codes, indexing="ij"), axis=-1).reshape(16, 32)
    packed = pack(jnp.asarray(pairs, jnp.int4))
    assert (packed.shape, packed.dtype) == ((16, 16), jnp.uint8)
    assert len(np.unique(packed)) == 256
    np.testing.assert_array_equal(unpack(packed).astype(jnp.int8), pairs)
    first_is_low = pack(jnp.asarray([[1, -2]], jnp.int4))
    assert first_is_low.tolist() == [[0xE1]]
    for kind in (ml_dtypes.int4, np.int8):
        on_host = pack(pairs.astype(kind))
        assert isinstance(on_host, np.ndarray)
        np.testing.assert_array_equal(on_host, packed)


def test_qwix_has_the_same_codes_in_fp8():
    """Google's quantisation library, where it is installed; its int8 has 255 steps of 2 / 255."""
    qwix = pytest.importorskip("qwix")
    values = draw()
    kind = jnp.float8_e4m3fn
    theirs = qwix.quantize(jnp.asarray(values), kind, channelwise_axes=[0])
    ours = quantised(values, "fp8")
    np.testing.assert_allclose(ours.scale, np.asarray(theirs.scale).ravel(), rtol=1e-6)
    differ = np.asarray(ours.values).astype(np.float32) != np.asarray(theirs.qvalue, np.float32)
    assert differ.mean() < 1e-3
