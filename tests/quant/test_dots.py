"""Products with quantised weights, against float64, and row by row."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.quant.dots import contract, contract_each, round_activations
from tpuinfer.quant.qarray import DTYPES, Kind, QArray, dequantise

R, F, W, S = 5, 24, 96, 32

KINDS = [
    (kind, grouped, zero)
    for kind, grouped, zero in itertools.product(("int8", "int4", "fp8"), (False, True), (0, 1))
]
ROUNDS = {jnp.bfloat16: 2.0**-8, jnp.float32: 2.0**-22}
"""What rounding a factor to the dtype may change, and half as much again."""

run = jax.jit(contract, static_argnames="tokens")


@functools.cache
def example(kind: Kind, grouped: bool, zero: int, lead: tuple[int, ...] = (F,)) -> QArray:
    """Random codes with a scale for each row or group."""
    random = np.random.default_rng(1)
    shape = (*lead, W // S, S) if grouped else (*lead, W)
    scales = shape[:-1]
    if kind == "fp8":
        codes = jnp.asarray(random.standard_normal(shape) * 50, DTYPES[kind])
    else:
        most = 8 if kind == "int4" else 128
        codes = jnp.asarray(random.integers(1 - most, most, shape), DTYPES[kind])
    scale = jnp.asarray(np.exp(random.standard_normal(scales)) / 100, jnp.float32)
    found = jnp.asarray(random.standard_normal(scales) / 10, jnp.float32) if zero else None
    return QArray(codes, scale, found, kind, grouped)


def activations(rows: int, dtype: object, seed: int = 2) -> jax.Array:
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 3, (rows, 1)))
    return jnp.asarray(random.standard_normal((rows, W)) * sizes, dtype)


def near(made: jax.Array, x: jax.Array, weight: QArray) -> None:
    """Made is x times what the codes stand for, but for what its dtype rounds.

    Planes of int8 take in what lies below a part in 127 * 254 of a row's largest.
    """
    assert made.dtype == jnp.float32
    exact, whole = np.asarray(x, np.float64), np.asarray(dequantise(weight), np.float64)
    width = np.abs(exact) @ np.abs(whole).T
    most = np.abs(exact).max(axis=-1, keepdims=True) * np.abs(whole).sum(axis=-1)
    rounding = ROUNDS[x.dtype.type] * width + (most / (127 * 254) if x.dtype != jnp.float32 else 0)
    assert (np.abs(made - exact @ whole.T) <= rounding + 2e-6 * most).all()


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("kind", "grouped", "zero"), KINDS)
def test_it_is_the_product_with_the_dequantised_weight(kind, grouped, zero, dtype, tokens):
    weight, x = example(kind, grouped, zero), activations(R, dtype)
    made = run(x, weight, tokens=tokens)
    assert made.shape == (R, F)
    near(made, x, weight)


@pytest.mark.parametrize(("kind", "grouped", "zero"), [("int8", False, 0), ("int4", True, 1)])
def test_several_dimensions_are_made_and_contracted(kind, grouped, zero):
    weight, x = example(kind, grouped, zero, (2, 3, 4)), activations(R, jnp.float32)
    made = run(x, weight)
    near(made, x, weight.flat())
    if not grouped:
        cubic = QArray(weight.values.reshape(2, 3, 4, 8, W // 8), weight.scale, None, kind)
        np.testing.assert_array_equal(run(x.reshape(R, 8, W // 8), cubic), made)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("kind", "grouped", "zero"),
    [
        ("int8", False, 0),
        ("int8", True, 0),
        ("int4", True, 0),
        ("int4", True, 1),
        ("fp8", False, 0),
    ],
)
def test_each_expert_takes_its_own_rows(kind, grouped, zero, dtype):
    experts = 3
    weight = example(kind, grouped, zero, (experts, F))
    x = activations(R * experts, dtype).reshape(R, experts, W)
    made = jax.jit(contract_each)(x, weight)
    assert made.shape == (experts, R, F)
    for expert in range(experts):
        near(made[expert], x[:, expert], jax.tree.map(lambda part, e=expert: part[e], weight))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_w8a8_is_the_product_of_what_both_round_to(dtype):
    """By hand: int8 times int8 in whole numbers, two scales, nothing else."""
    weight, x = example("w8a8", False, 0), activations(R, dtype)
    exact = np.asarray(x, np.float32)
    scale = np.abs(exact).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(exact / scale).astype(np.int64)
    whole = codes @ np.asarray(weight.values, np.int64).T
    for tokens in (1, 64):
        made = run(x, weight, tokens=tokens)
        np.testing.assert_allclose(made, whole * scale * np.asarray(weight.scale), rtol=1e-6)


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_planes_of_activations_come_nearer_and_nearer(planes):
    x = activations(R, jnp.float32)
    made, scale = round_activations(x, planes)
    assert len(made) == planes
    assert {plane.dtype for plane in made} == {jnp.dtype(jnp.int8)}
    assert scale.shape == (R, 1)
    steps = [np.asarray(plane, np.float64) / 254.0**n for n, plane in enumerate(made)]
    error = np.abs(sum(steps) * np.asarray(scale) - np.asarray(x, np.float64))
    float32 = 127 * 2.0**-22
    assert (error <= np.asarray(scale) * (0.5 / 254.0 ** (planes - 1) + float32)).all()


def test_two_planes_hold_the_seven_bits_below_a_row_s_largest():
    x = jnp.asarray([[1.0, 0.5, 127 / 128, -3 / 128, 0.0]], jnp.bfloat16)
    made, scale = round_activations(x, 2)
    back = (made[0].astype(jnp.float32) + made[1].astype(jnp.float32) / 254) * scale
    np.testing.assert_allclose(back, np.asarray(x, np.float32), atol=1 / (127 * 500))


def test_a_row_of_zeros_is_zeros():
    for kind, grouped, zero in (*KINDS, ("w8a8", False, 0)):
        made = run(jnp.zeros((R, W), jnp.bfloat16), example(kind, grouped, zero))
        np.testing.assert_array_equal(made, 0)


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("kind", "grouped", "zero"),
    [
        ("int8", False, 0),
        ("w8a8", False, 0),
        ("fp8", False, 0),
        ("int8", True, 0),
        ("int4", True, 1),
    ],
)
def test_a_row_has_the_same_bits_in_any_company(kind, grouped, zero, dtype, tokens):
    """Of more rows, of fewer, in another place, and beside one of 1e30."""
    weight, x = example(kind, grouped, zero), activations(64, dtype)
    whole = np.asarray(run(x, weight, tokens=tokens))
    for rows in (4, 8, 16):
        np.testing.assert_array_equal(run(x[:rows], weight, tokens=tokens), whole[:rows])
    order = np.random.default_rng(3).permutation(64)
    np.testing.assert_array_equal(run(x[order], weight, tokens=tokens), whole[order])
    loud = x.at[1].set(jnp.asarray(1e30, dtype))
    again = np.asarray(run(loud, weight, tokens=tokens))
    np.testing.assert_array_equal(np.delete(again, 1, axis=0), np.delete(whole, 1, axis=0))
