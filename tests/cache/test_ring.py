"""Writing to rings against a Python list, and prefill and decode against dense attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.cache import ring as ring_module
from tpuinfer.cache.ring import Ring, RingAttention, Rows
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules, resolve

SLOTS, KV, HEADS, LENGTH, HEAD = 4, 4, 8, 8, 2

write = jax.jit(ring_module.write)


def rows(slot, start, length):
    return Rows(*(np.array(values, np.int32) for values in (slot, start, length)))


def empty():
    """Rings that say of every column that nobody wrote it."""
    shape = (SLOTS, KV, LENGTH, HEAD)
    return Ring(np.full(shape, -1, np.float32), np.full(shape, -1, np.float32))


def marks(where, width):
    """Keys [R, K, T, H] that say which row, head and position they are of; values are negated."""
    positions = where.start[:, None] + np.arange(width)
    head = np.arange(KV)[None, :, None]
    mark = 10_000 * (where.slot[:, None, None] + 1) + 1000 * head + positions[:, None, :]
    keys = np.repeat(mark[..., None], HEAD, axis=-1).astype(np.float32)
    return keys, -keys


calls = st.lists(
    st.tuples(
        st.permutations(range(SLOTS)),
        st.lists(st.integers(0, 20), min_size=2, max_size=2),
        st.lists(st.integers(0, 3), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@given(calls=calls)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_writes_by_a_list(calls):
    """Two rows a call, up to 3 tokens each, anywhere, over the end of the ring and around it."""
    held = [[-1] * LENGTH for _ in range(SLOTS)]
    ring = empty()
    for slots, starts, lengths in calls:
        where = rows(slots[:2], starts, lengths)
        ring = write(ring, *marks(where, 3), where)
        for slot, start, length in zip(slots, starts, lengths, strict=False):
            for position in range(start, start + length):
                held[slot][position % LENGTH] = position
    held = np.array(held)[:, None, :]
    of_slot, of_head = 10_000 * np.arange(1, SLOTS + 1), 1000 * np.arange(KV)
    mark = np.where(held < 0, 1, of_slot[:, None, None] + of_head[None, :, None] + held)[..., None]
    np.testing.assert_array_equal(ring.keys, np.where(mark == 1, -1, mark).repeat(HEAD, -1))
    np.testing.assert_array_equal(ring.values, -mark.repeat(HEAD, -1))


def test_idle_rows_and_padding_write_nothing():
    """Not even when they point at a slot that another row writes, or hold NaN."""
    where = rows([1, 1, 3], [6, 0, 2], [2, 0, 1])
    keys, values = marks(where, 3)
    keys[0, :, 2:] = keys[1] = keys[2, :, 1:] = np.nan
    ring = write(empty(), keys, values, where)
    changed = np.asarray(ring.keys != -1).any(axis=(1, 3))
    assert np.argwhere(changed).tolist() == [[1, 6], [1, 7], [3, 2]]
    assert np.isfinite(ring.keys).all()


def test_positions_by_hand():
    where = rows([0, 1], [5, 0], [2, 0])
    assert where.positions(3).tolist() == [[5, 6, 7], [0, 1, 2]]


@functools.cache
def attention(mesh, identity, block=4):
    sizes = {"batch": SLOTS, "heads": HEADS, "kv_heads": KV}
    layout = resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)
    attend = RingAttention(layout, block, identity)
    return jax.jit(lambda *arrays: attend(*arrays))


def random_case(where, width, seed=0):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    count = len(where.start)
    q, k, v = (normal(count, width, heads, HEAD) for heads in (HEADS, KV, KV))
    return q, k, v, Ring(normal(SLOTS, KV, LENGTH, HEAD), normal(SLOTS, KV, LENGTH, HEAD))


def dense(q, keys, values):
    """One query [N, H] over the keys and values it sees, [S, K, H] each -> [N, H]."""
    out = np.zeros(q.shape)
    for n in range(HEADS):
        kv = n // (HEADS // KV)
        scores = keys[:, kv].astype(np.float64) @ q[n] / np.sqrt(HEAD)
        weights = np.exp(scores - scores.max())
        out[n] = weights @ values[:, kv] / weights.sum()
    return out


MESHES = pytest.mark.parametrize("mesh", ["1", "2x4"])
"""One prefill row a data shard: on 2x4 slots 0 and 1 of each shard are global 0, 1 and 2, 3."""


@MESHES
@pytest.mark.parametrize(
    ("start", "length"), [(0, 3), (0, 1), (5, 3), (6, 3), (7, 2), (8, 3), (19, 3)]
)
def test_prefill_sees_the_old_ring_and_then_overwrites_it(mesh, start, length):
    """A chunk that wraps needs keys that it is about to overwrite."""
    where = rows([1, 0], [start, 2], [length, 3])
    q, k, v, old = random_case(where, 3)
    own = [1, 2] if mesh == "2x4" else [1, 0]
    out, new = attention(mesh, False)(q, k, v, old, where)
    expected = Ring(old.keys.copy(), old.values.copy())
    for row, slot in enumerate(own):
        first = int(where.start[row])
        past = [p % LENGTH for p in range(max(0, first - LENGTH), first)]
        for t in range(where.length[row]):
            seen = [
                np.concatenate([array[slot][:, past].swapaxes(0, 1), fresh[row, : t + 1]])
                for array, fresh in ((old.keys, k), (old.values, v))
            ]
            np.testing.assert_allclose(out[row, t], dense(q[row, t], *seen), atol=1e-5)
            column = (first + t) % LENGTH
            expected.keys[slot, :, column] = k[row, t]
            expected.values[slot, :, column] = v[row, t]
    np.testing.assert_array_equal(new.keys, expected.keys)
    np.testing.assert_array_equal(new.values, expected.values)


@MESHES
def test_decode_writes_and_sees_a_window_of_the_ring(mesh):
    """Rows below, at and beyond the end of the ring; the third is idle."""
    where = rows([0, 1, 0, 1] if mesh == "2x4" else [0, 1, 2, 3], [0, 7, 3, 21], [1, 1, 0, 1])
    q, k, v, old = random_case(where, 1, seed=3)
    out, new = attention(mesh, True)(q, k, v, old, where)
    expected = Ring(old.keys.copy(), old.values.copy())
    for slot in (0, 1, 3):
        position = int(where.start[slot])
        expected.keys[slot, :, position % LENGTH] = k[slot, 0]
        expected.values[slot, :, position % LENGTH] = v[slot, 0]
        seen = [p % LENGTH for p in range(max(0, position + 1 - LENGTH), position + 1)]
        window = (array[slot][:, seen].swapaxes(0, 1) for array in (expected.keys, expected.values))
        np.testing.assert_allclose(out[slot, 0], dense(q[slot, 0], *window), atol=1e-5)
    np.testing.assert_array_equal(new.keys, expected.keys)
    np.testing.assert_array_equal(new.values, expected.values)


def test_rows_added_to_reach_a_minimum_change_nothing():
    """Decode may be given more rows than slots; those beyond are padding, and come back zero."""
    where = rows([0, 1, 2, 3, 0, 0], [0, 7, 3, 21, 0, 0], [1, 1, 1, 1, 0, 0])
    q, k, v, old = random_case(where, 1, seed=4)
    q[SLOTS:] = k[SLOTS:] = v[SLOTS:] = np.nan
    padded, ring = attention("1", True)(q, k, v, old, where)
    few = jax.tree.map(lambda x: x[:SLOTS], where)
    out, plain = attention("1", True)(q[:SLOTS], k[:SLOTS], v[:SLOTS], old, few)
    np.testing.assert_array_equal(padded[:SLOTS], out)
    np.testing.assert_array_equal(padded[SLOTS:], 0)
    np.testing.assert_array_equal(ring.keys, plain.keys)


@pytest.mark.parametrize("identity", [False, True])
def test_what_a_former_tenant_left_does_not_matter(identity):
    """A slot opened at position 0 over NaN gives the bits it gives over zeros."""
    where = rows([2, 0], [0, 0], [3, 3]) if not identity else rows(range(4), [0] * 4, [1] * 4)
    q, k, v, old = random_case(where, 1 if identity else 3)
    results = []
    for junk in (0, np.nan):
        stale = dataclasses.replace(
            old, keys=np.full_like(old.keys, junk), values=np.full_like(old.values, junk)
        )
        results.append(attention("1", identity)(q, k, v, stale, where)[0])
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all()


def test_a_ring_of_another_dtype_keeps_its_own():
    """On the CPU the ring is float32 while activations are bfloat16."""
    where = rows(range(4), [2] * 4, [1] * 4)
    q, k, v, old = random_case(where, 1)
    half = (jnp.asarray(array, jnp.bfloat16) for array in (q, k, v))
    out, new = attention("1", True)(*half, old, where)
    assert out.dtype == jnp.bfloat16
    assert new.keys.dtype == new.values.dtype == jnp.float32
