"""A quantised weight as a value: its shapes, its bytes, and what its codes stand for."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, bits_of, bytes_of, dequantise
from tpuinfer.quant.schemes import Scheme
from tpuinfer.testing.tiny import TINY

SCHEMES = ("int8", "w8a8", "fp8", "int8:16", "fp8:8", "int4:16", "int4z:16")


@functools.cache
def example(word: str, shape: tuple[int, ...] = (6, 2, 4, 8), contracted: int = 2) -> QArray:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return jax.jit(fit.quantise, static_argnums=(1, 2))(values, Scheme.parse(word), contracted)


@pytest.mark.parametrize("word", SCHEMES)
def test_it_has_the_shape_of_its_weight(word):
    value = example(word)
    assert value.shape == (6, 2, 32)
    assert value.outs == 2
    assert value.group == Scheme.parse(word).group
    assert value.scale.shape == ((6, 2, 32 // value.group) if value.grouped else (6, 2))
    assert (value.zero is None) == (word != "int4z:16")
    flat = value.flat()
    assert (flat.shape, flat.outs, flat.group) == ((12, 32), 1, value.group)
    np.testing.assert_array_equal(dequantise(flat).reshape(6, 2, 32), dequantise(value))


def test_codes_times_scale_plus_zero_by_hand():
    value = QArray(
        jnp.asarray([[[1, -2], [3, 4]], [[0, 7], [-8, 1]]], jnp.int4),
        jnp.asarray([[0.5, 2.0], [1.0, 0.25]], jnp.float32),
        jnp.asarray([[10.0, 0.0], [-1.0, 2.0]], jnp.float32),
        "int4",
        grouped=True,
    )
    np.testing.assert_array_equal(dequantise(value), [[10.5, 9, 6, 8], [-1, 6, 0, 2.25]])


@pytest.mark.parametrize("word", SCHEMES)
def test_bytes_are_known_before_there_are_any(word):
    """Of every matmul of a model: those of the abstract value, of arrays, and of a formula."""
    scheme = Scheme.parse(word)
    for name, weight in weights(registry.build(TINY)).items():
        if not weight.contracted:
            continue
        planned = fit.abstract(scheme, weight.shape, weight.contracted)
        host = jax.ShapeDtypeStruct(weight.shape, jnp.float32)
        make = functools.partial(fit.quantise, scheme=scheme, contracted=weight.contracted)
        made = jax.eval_shape(make, host)
        assert jax.tree.structure(planned) == jax.tree.structure(made)
        for one, other in zip(jax.tree.leaves(planned), jax.tree.leaves(made), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        count = math.prod(weight.shape)
        rows = math.prod(weight.shape[: -weight.contracted])
        scales = count // scheme.group if scheme.group else rows
        wanted = count * (4 if scheme.is_packed else 8) // 8 + 4 * scales * (1 + scheme.has_zero)
        assert fit.nbytes(scheme, weight.shape, weight.contracted) == planned.nbytes == wanted
    real = example(word)
    assert real.nbytes == fit.nbytes(scheme, (6, 2, 4, 8), 2)


def test_two_four_bit_codes_share_a_byte_on_devices():
    assert bits_of(jnp.int4) == bits_of("uint4") == 4
    assert bits_of(jnp.bfloat16) == 16
    assert bytes_of((3, 5), jnp.int4) == 8
    assert bytes_of((3, 5), jnp.float8_e4m3fn) == 15


def test_it_is_a_pytree_whose_kind_is_static():
    value = example("w8a8")
    assert len(jax.tree.leaves(value)) == 2
    assert len(jax.tree.leaves(example("int4z:16"))) == 3
    same = jax.tree.map(lambda part: part, value)
    assert (same.kind, same.grouped) == ("w8a8", False)
    assert jax.tree.structure(value) != jax.tree.structure(example("int8"))


@pytest.mark.parametrize("word", SCHEMES)
def test_the_scheme_is_read_off_the_value(word):
    assert fit.scheme_of(example(word)) == Scheme.parse(word)


@pytest.mark.parametrize(("zero", "outs"), [(False, (6,)), (True, (2, 3))])
def test_codes_in_pairs_are_the_same_weight(zero, outs):
    """What a CPU keeps, of one output dimension and of two."""
    random = np.random.default_rng(0)
    codes = jnp.asarray(random.integers(-8, 8, (*outs, 2, 16)), jnp.int4)
    scale = jnp.asarray(random.normal(size=(*outs, 2)), jnp.float32)
    whole = QArray(codes, scale, scale if zero else None, "int4", grouped=True)
    pairs = whole.packed()
    assert (pairs.values.dtype, pairs.values.shape) == (jnp.uint8, (*outs, 2, 8))
    assert (pairs.is_packed, whole.is_packed) == (True, False)
    assert (pairs.group, pairs.shape, pairs.nbytes) == (whole.group, whole.shape, whole.nbytes)
    assert pairs.packed() is pairs
    assert pairs.flat().group == 16
    for back in (pairs.unpacked(), pairs.flat().unpacked()):
        np.testing.assert_array_equal(dequantise(back).ravel(), dequantise(whole).ravel())
    np.testing.assert_array_equal(dequantise(pairs), dequantise(whole))
    eight = QArray(jnp.ones((2, 4), jnp.int8), jnp.ones(2))
    assert eight.packed() is eight
