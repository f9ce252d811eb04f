"""The forms of other platforms than the CPU, run on the CPU: their numbers, not their speed.

What a TPU's compiler makes of them: tests/planning/test_aot_quantised.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.quant import dots, fit
from tpuinfer.quant.qarray import dequantise
from tpuinfer.quant.schemes import Scheme

WIDTH = 1024
SCHEMES = ["int8", "fp8", "int8:128", "fp8:64", "int4:32", "int4:64", "int4:128", "int4:512"]
SCHEMES += ["int4z:64", "int4z:128"]


def weight(outs: tuple[int, ...], scheme: str):
    values = jax.random.normal(jax.random.key(3), (*outs, WIDTH), jnp.float32)
    return fit.quantise(values, Scheme.parse(scheme), 1)


def rows(*lead: int) -> jax.Array:
    return jax.random.normal(jax.random.key(4), (*lead, WIDTH), jnp.float32)


@pytest.mark.parametrize("outs", [(24,), (3, 8)])
@pytest.mark.parametrize("tokens", [1, dots.WIDE])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_those_of_the_weight_that_the_codes_stand_for(scheme, tokens, outs):
    kept, x = weight(outs, scheme), rows(5)
    made = jax.jit(dots._default, static_argnames="tokens")(x, kept, tokens=tokens)
    wanted = np.asarray(x, np.float64) @ np.asarray(dequantise(kept), np.float64).reshape(24, -1).T
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, wanted, atol=2e-4 * WIDTH**0.5)


@pytest.mark.parametrize("scheme", ["int4:64", "int4:128"])
def test_each_expert_multiplies_its_own_rows(scheme):
    kept, x = weight((3, 8), scheme), rows(5, 3)
    each = jax.vmap(lambda x, w: dots._default(x, w, dots.WIDE), in_axes=(1, 0))
    wanted = np.einsum("xef,edf->exd", np.asarray(x), np.asarray(dequantise(kept)))
    np.testing.assert_allclose(each(x, kept), wanted, atol=2e-4 * WIDTH**0.5)


@pytest.mark.parametrize(
    ("scheme", "tokens", "sums"),
    [("int4:64", 1, False), ("int4:128", 1, True), ("int4:128", dots.WIDE, False)],
)
def test_which_groups_are_scaled_after_the_dot(scheme, tokens, sums):
    """By the size of a group and the tokens of a row alone; rows of the batch change nothing."""
    kept = weight((24,), scheme)
    groups = kept.scale.shape[1]
    for count in (1, 64):
        text = str(jax.make_jaxpr(lambda x: dots._default(x, kept, tokens))(rows(count)))
        assert (f"f32[{groups},{count},24]" in text) == sums
