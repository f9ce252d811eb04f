"""Rows written to rings by the kernel, interpreted, against the flat scatter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.write import write
from tpuinfer.ops.kernels.write import takes, write_rows
from tpuinfer.quant.rows import Rounded, as_codes

SLOTS, KV, HEAD = 4, 2, 8


@functools.cache
def program(sinks, turned=True):
    run = functools.partial(write_rows, sinks=sinks, turned=turned, interpret=True)
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


@jax.jit
def scattered(ring, new, rows):
    return write(ring, *(Rounded(as_codes(one), None) for one in new), rows)


def bits(random, kind, *shape):
    if kind in ("int8", "uint8"):
        return random.integers(0, 120, shape).astype(kind)
    wide = random.standard_normal(shape) * 10.0 ** random.integers(-3, 4)
    return np.asarray(jnp.asarray(wide, kind))


@pytest.mark.parametrize(
    ("kind", "length", "width", "sinks", "turned"),
    [
        ("float32", 256, 1, 0, True),
        ("bfloat16", 128, 1, 3, True),
        ("uint8", 256, 1, 0, True),
        ("float32", 384, 150, 0, True),
        ("int8", 256, 150, 5, True),
        ("bfloat16", 256, 300, 50, True),  # a chunk longer than the ring
        ("float32", 256, 150, 3, False),
        ("uint8", 384, 150, 0, False),
        ("bfloat16", 256, 300, 50, False),
    ],
)
def test_as_the_scatter_writes(kind, length, width, sinks, turned):
    random = np.random.default_rng(4)
    for trial in range(4):
        old = [bits(random, kind, SLOTS, KV, length, HEAD) for _ in range(2)]
        new = [bits(random, kind, 3, KV, width, HEAD) for _ in range(2)]
        slots = random.permutation(SLOTS)[:3].astype(np.int32)
        start = random.integers(0, 3 * length, 3).astype(np.int32)
        start[0] = (0, length - 1, 2 * length - 3, 1)[trial]
        count = random.integers(1, width + 1, 3).astype(np.int32)
        count[0] = width if trial == 0 else count[0]
        count[2], slots[2] = 0, slots[0]  # idle, and named after a slot that is not
        expected = scattered(Ring(*old, length, sinks), new, Rows(slots, start, count))
        found = program(sinks, turned)(tuple(old), tuple(new), slots, start, count)
        for one, other in zip(found, (expected.keys, expected.values), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            assert (np.asarray(one) != old[0]).any()


def test_rings_nobody_writes_to_stay():
    random = np.random.default_rng(1)
    old = tuple(bits(random, "float32", SLOTS, KV, 256, HEAD) for _ in range(2))
    new = tuple(bits(random, "float32", 3, KV, 1, HEAD) for _ in range(2))
    idle = np.zeros(3, np.int32)
    for one, other in zip(program(0)(old, new, idle, idle, idle), old, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_what_fits_is_taken():
    ring = jax.ShapeDtypeStruct((4, 8, 1024, 128), jnp.bfloat16)
    assert takes(ring, 1024)
    assert not takes(ring, 1025)
    assert not takes(jax.ShapeDtypeStruct((4, 8, 1000, 128), jnp.bfloat16), 8)
