"""The decode state: its shapes, where it lies, and how it begins."""

import jax
import numpy as np

from tpuinfer.cache.spec import RingSpec
from tpuinfer.programs.state import abstract_state, row_arrays, zeros
from tpuinfer.testing.tiny import ODD, TINY, tiny

RINGS = (
    (RingSpec(4, 8, 16, 8, "float32", 6), RingSpec(2, 8, 24, 8, "float32", 18, 2)),
    (RingSpec(4, 8, 32, 8, "bfloat16"), RingSpec(2, 8, 64, 8, "bfloat16")),
)
"""Two layers in two classes of slots."""


def test_shapes_by_hand():
    state = abstract_state(RINGS, tiny(TINY).layout, vocab=97, max_stop_ids=5)
    for rings, specs in zip(state.rings, RINGS, strict=True):
        for ring, spec in zip(rings, specs, strict=True):
            assert ring.keys.shape == ring.values.shape == spec.shape
            assert str(ring.keys.dtype) == str(ring.values.dtype) == str(spec.abstract().dtype)
            assert (ring.window, ring.sinks) == (spec.window, spec.sinks)
    assert state.stops.shape == (6, 5)
    assert state.counts.shape == (6, 97)
    vectors = {
        (leaf.shape, str(leaf.dtype))
        for leaf in jax.tree.leaves((state.token, state.position, state.remaining, state.live))
    }
    assert vectors == {((6,), "int32"), ((6,), "bool")}
    assert state.sampling.seed.dtype == np.uint32


def test_row_arrays_are_one_row_each():
    sampling, stops = row_arrays(3, 7)
    assert {leaf.shape for leaf in jax.tree.leaves(sampling)} == {(3,)}
    assert stops.shape == (3, 7)


def test_rings_are_cut_over_the_mesh_and_the_rest_is_whole():
    def parts(config, mesh):
        state = tiny(config, mesh).state
        keys, token = state.rings[0][0].keys, state.token
        return keys.sharding.shard_shape(keys.shape), token.sharding.shard_shape(token.shape)

    assert parts(TINY, "2x4") == ((2, 2, 48, 8), (4,))
    assert parts(TINY, "8") == ((4, 1, 48, 8), (4,))
    assert parts(ODD, "2x4") == ((2, 1, 48, 8), (4,))


def test_it_begins_idle_and_in_its_place():
    abstract = tiny(TINY, "2x4").state
    state = zeros(abstract)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        assert not np.asarray(leaf).any()
