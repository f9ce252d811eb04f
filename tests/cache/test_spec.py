"""Sizes of rings, by hand."""

import jax.numpy as jnp

from tpuinfer.cache.spec import RING_AXES, RingSpec, ring_length


def test_shape_and_bytes_by_hand():
    spec = RingSpec(slots=3, kv_heads=2, length=16, head_dim=4, dtype="bfloat16")
    assert spec.shape == (3, 2, 16, 4)
    assert spec.bytes == 2 * (3 * 2 * 16 * 4) * 2
    assert spec.abstract().shape == spec.shape
    assert spec.abstract().dtype == jnp.bfloat16
    assert len(RING_AXES) == len(spec.shape)


def test_a_ring_holds_whole_blocks():
    assert [ring_length(n, 8) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]
