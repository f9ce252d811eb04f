"""Matmuls: every form of equation against numpy, what is rounded, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.ops.linear import einsum, project, split_equation, take_rows

FORMS = [
    ("BTD,FD->BTF", (2, 3, 8), (5, 8), (1, 1)),
    ("BTD,NHD->BTNH", (2, 3, 8), (4, 6, 8), (1, 2)),
    ("BTNH,DNH->BTD", (2, 3, 4, 6), (8, 4, 6), (2, 1)),
    ("BD,VD->BV", (2, 8), (11, 8), (1, 1)),
]


@pytest.mark.parametrize(("equation", "left", "right", "split"), FORMS)
def test_by_numpy(equation, left, right, split):
    random = np.random.default_rng(0)
    x, w = random.standard_normal(left), random.standard_normal(right)
    result = einsum(equation, jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(result, np.einsum(equation, x, w), rtol=1e-5, atol=1e-5)
    assert split_equation(equation) == split


@pytest.mark.parametrize(
    "equation",
    [
        "BTD,DF->BTF",  # the contracted letter comes first in the weight
        "BTD,FD->BFT",  # the result is permuted
        "BTD,FDG->BTFG",  # the contracted letter is in the middle
        "DBT,FD->BTF",  # ... or leads the activation
        "BT,FD->BTFD",  # nothing is contracted
    ],
)
def test_other_forms_are_refused(equation):
    with pytest.raises(ValueError, match="is not of the form"):
        split_equation(equation)


def test_bfloat16_accumulates_in_float32_and_rounds_once():
    x = jnp.ones((4, 1024), jnp.bfloat16)
    w = jnp.full((2, 1024), 1 + 2**-7, jnp.bfloat16)
    result = einsum("TD,FD->TF", x, w)
    assert result.dtype == jnp.bfloat16
    assert np.asarray(result, np.float32).tolist() == [[1032.0] * 2] * 4


def test_a_weight_takes_the_dtype_of_the_activation():
    x = jnp.ones((4, 8), jnp.bfloat16)
    text = jax.jit(einsum, static_argnums=0).lower("TD,FD->TF", x, jnp.ones((2, 8))).as_text()
    (dot,) = [line for line in text.splitlines() if "dot_general" in line]
    assert "(tensor<4x8xbf16>, tensor<2x8xbf16>) -> tensor<4x2xf32>" in dot


def test_the_head_is_not_rounded():
    random = np.random.default_rng(1)
    x, w = (
        jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in [(4, 64), (9, 64)]
    )
    result = project(x, w)
    assert result.dtype == jnp.float32
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_are_taken_bit_for_bit(dtype):
    table = jnp.arange(12.0, dtype=dtype).reshape(4, 3) / 7
    ids = jnp.array([[3, 0], [1, 3]], jnp.int32)
    rows = take_rows(table, ids)
    assert rows.dtype == table.dtype
    np.testing.assert_array_equal(np.asarray(rows), np.asarray(table)[np.asarray(ids)])


def test_a_bf16_table_is_not_converted_whole():
    table = jax.ShapeDtypeStruct((4096, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((8,), jnp.int32)
    compiled = jax.jit(take_rows).lower(table, ids).compile()
    assert "f32[4096,64]" not in compiled.as_text()
