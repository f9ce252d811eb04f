"""Arguments in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tpuinfer.programs.signature import differences, shapes, short

I32 = jax.ShapeDtypeStruct((4,), jnp.int32)


def program(params, state, given, n):
    raise AssertionError


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        (jnp.int32, (4, 64), "i32[4,64]"),
        (jnp.uint32, (), "u32[]"),
        (jnp.bfloat16, (2,), "bf16[2]"),
        (jnp.float8_e4m3fn, (2,), "f8_e4m3fn[2]"),
        (jnp.int4, (2,), "i4[2]"),
        (bool, (8,), "bool[8]"),
    ],
)
def test_short(dtype, shape, text):
    assert short(jax.ShapeDtypeStruct(shape, dtype)) == text


def test_shapes_say_what_the_host_sends_along():
    tokens, flag = jax.ShapeDtypeStruct((4, 8), jnp.int32), jax.ShapeDtypeStruct((4,), bool)
    given = {"a": tokens, "b": {"c": I32, "d": flag}, "e": I32}
    arguments = ({"w": I32}, [I32], given, jax.ShapeDtypeStruct((), jnp.int32))
    assert shapes(program, arguments, start=2) == ("a i32[4,8], b.c e i32[4], b.d bool[4], n i32[]")


def test_what_a_program_takes_is_no_difference():
    expected = ({"w": I32}, [I32], (), I32)
    array = jnp.zeros(4, jnp.int32)
    assert differences(program, expected, ({"w": array}, [np.zeros(4, np.int64)], (), array)) == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([I32], I32, I32, I32), ["params is missing", "params.0 is ShapeDtypeStruct"]),
        ((I32, I32, I32), ["n is missing, compiled for i32[4]"]),
        ((I32, I32, I32, I32, I32), ["argument 4 is ShapeDtypeStruct, compiled for nothing"]),
        ((I32, "x", I32, I32), ["state is a str, compiled for i32[4]"]),
        ((I32, np.zeros(4, bool), I32, I32), ["state is bool[4], compiled for i32[4]"]),
    ],
)
def test_differences(given, words):
    found = differences(program, (I32,) * 4, given)
    assert len(found) == len(words)
    for difference, text in zip(found, words, strict=True):
        assert str(difference).startswith(text)


def test_trees_of_another_kind_differ():
    (found,) = differences(program, ((I32,),), ([I32],))
    assert found.path == "the tree of arguments"
    assert "[*]" in found.given


def test_a_committed_array_lies_where_it_should():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    expected = (jax.ShapeDtypeStruct((4,), jnp.int32, sharding=cut),)
    array = jnp.zeros(4, jnp.int32)
    assert differences(program, expected, (jax.device_put(array, cut),)) == ()
    assert differences(program, expected, (array,)) == ()
    (found,) = differences(program, expected, (jax.device_put(array, whole),))
    assert str(found) == (
        "params is i32[4] on mesh {'data': 2} cut as (), "
        "compiled for i32[4] on mesh {'data': 2} cut as ('data',)"
    )
