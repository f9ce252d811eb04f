"""Packed on the device, taken apart on the host: bit by bit the same."""

import jax
import jax.numpy as jnp
import numpy as np

from tpuinfer.ops.sampling import TOP, Sampled
from tpuinfer.programs.output import nothing, pack, unpack

SAMPLED = Sampled(
    tokens=np.array([7, 8, 9], np.int32),
    logprobs=np.array([-0.1, -np.inf, -3e-39], np.float32),
    top_ids=np.arange(3 * TOP, dtype=np.int32).reshape(3, TOP),
    top_logprobs=-np.random.default_rng(0).random((3, TOP), np.float32),
)
LIVE = np.array([True, False, True])


def test_what_is_packed_is_unpacked():
    out = jax.jit(pack)(SAMPLED, LIVE)
    assert (out.packed.shape, out.top.shape) == ((3, 2), (3, 2, TOP))
    assert out.packed.dtype == out.top.dtype == jnp.int32
    found = unpack(*(np.asarray(array)[None] for array in (out.packed, out.top)))
    assert found.tokens.tolist() == [[7, -1, 9]]
    assert found.logprobs.tobytes() == SAMPLED.logprobs.tobytes()
    np.testing.assert_array_equal(found.top_ids[0], SAMPLED.top_ids)
    assert found.top_logprobs.tobytes() == SAMPLED.top_logprobs.tobytes()


def test_nothing_has_no_tokens():
    out = nothing(4, 3)
    assert (out.packed.shape, out.top.shape) == ((4, 3, 2), (4, 3, 2, TOP))
    found = unpack(np.asarray(out.packed), None)
    assert (found.tokens == -1).all()
    assert found.top_ids is found.top_logprobs is None


def test_unpacking_copies_nothing():
    out = jax.tree.map(np.asarray, nothing(2, 3))
    found = unpack(out.packed, out.top)
    for view, whole in zip(found, (out.packed, out.packed, out.top, out.top), strict=True):
        assert np.shares_memory(view, whole)
