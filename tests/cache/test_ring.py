"""Writing to rings against a Python list, and one call over one ring against dense attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.cache import write as write_module
from tpuinfer.cache.held import Ring, Rows, horizons
from tpuinfer.cache.ring import Asked, RingAttention
from tpuinfer.ops import attention as attention_ops
from tpuinfer.quant.rows import Rounded
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules

SLOTS, KV, HEADS, LENGTH, HEAD = 4, 4, 8, 8, 2

write_rows = jax.jit(write_module.write)


def write(ring, keys, values, where, put=write_rows):
    return put(ring, Rounded(keys, None), Rounded(values, None), where)


def rows(slot, start, length):
    return Rows(*(np.array(values, np.int32) for values in (slot, start, length)))


def empty(sinks=0):
    """Rings that say of every column that nobody wrote it."""
    shape = (SLOTS, KV, LENGTH, HEAD)
    blank = np.full(shape, -1, np.float32)
    return Ring(blank, blank, LENGTH - sinks if sinks else None, sinks)


def marks(where, width):
    """Keys [R, K, T, H] that say which row, head and position they are of; values are negated."""
    positions = where.start[:, None] + np.arange(width)
    head = np.arange(KV)[None, :, None]
    mark = 10_000 * (where.slot[:, None, None] + 1) + 1000 * head + positions[:, None, :]
    keys = np.repeat(mark[..., None], HEAD, axis=-1).astype(np.float32)
    return keys, -keys


def assert_holds(ring, held):
    """`held` [SLOTS][LENGTH] says which position each column has, -1 for none."""
    held = np.array(held)[:, None, :]
    of_slot, of_head = 10_000 * np.arange(1, SLOTS + 1), 1000 * np.arange(KV)
    mark = np.where(held < 0, 1, of_slot[:, None, None] + of_head[None, :, None] + held)[..., None]
    np.testing.assert_array_equal(ring.keys, np.where(mark == 1, -1, mark).repeat(HEAD, -1))
    np.testing.assert_array_equal(ring.values, np.where(mark == 1, -1, -mark).repeat(HEAD, -1))


calls = st.lists(
    st.tuples(
        st.permutations(range(SLOTS)),
        st.lists(st.integers(0, 20), min_size=2, max_size=2),
        st.lists(st.integers(0, 3), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@given(calls=calls, sinks=st.sampled_from([0, 1, 3]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_writes_by_a_list(calls, sinks):
    """Two rows a call, up to 3 tokens each, anywhere, over the end of the ring and around it."""
    held = [[-1] * LENGTH for _ in range(SLOTS)]
    around = LENGTH - sinks
    ring = empty(sinks)
    for slots, starts, lengths in calls:
        where = rows(slots[:2], starts, lengths)
        ring = write(ring, *marks(where, 3), where)
        for slot, start, length in zip(slots, starts, lengths, strict=False):
            for p in range(start, start + length):
                held[slot][p if p < sinks else sinks + (p - sinks) % around] = p
    assert_holds(ring, held)


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6), sinks=st.sampled_from([0, 1, 4]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_ring_holds_the_newest_tokens_and_the_sinks_where_it_says(sizes, sinks):
    """Chunk after chunk, some longer than the ring: no column is written twice, or by padding."""
    ring, tokens, columns = empty(sinks), [], np.arange(LENGTH, dtype=np.int32)
    for size in sizes:
        where = rows([2], [len(tokens)], [size])
        ring = write(ring, *marks(where, 12), where)
        tokens += range(len(tokens), len(tokens) + size)
    newest = np.array([len(tokens) - 1], np.int32)
    (held,) = np.maximum(attention_ops.ring_positions(newest, columns, LENGTH, sinks), -1).tolist()
    wanted = {*tokens[:sinks], *tokens[-(LENGTH - sinks) :]}
    assert sorted(p for p in held if p >= 0) == sorted(wanted)
    for column, position in enumerate(held):
        if position >= 0:
            at = attention_ops.ring_column(np.array([position]), LENGTH, sinks)
            assert at.tolist() == [column]
    assert_holds(ring, [[-1] * LENGTH] * 2 + [held] + [[-1] * LENGTH])


class Recorder:
    """Stands for the array of a ring, and keeps where it is written."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape):
        self.shape = shape

    def reshape(self, *_):
        return self

    @property
    def at(self):
        return self

    def __getitem__(self, flat):
        self.written = np.asarray(flat)[np.asarray(flat) < np.prod(self.shape[:3])]
        return self

    def set(self, new, mode):
        assert mode == "drop"
        return self


@pytest.mark.parametrize(("sinks", "start"), [(0, 0), (0, 5), (3, 0), (3, 2), (3, 9)])
def test_no_column_is_written_twice_in_one_call(sinks, start):
    """Which of two tokens stays would be up to the device; that a CPU keeps the last is luck."""
    keys, values = Recorder((SLOTS, KV, LENGTH, HEAD)), Recorder((SLOTS, KV, LENGTH, HEAD))
    where = rows([2], [start], [12])
    write(Ring(keys, values, None, sinks), *marks(where, 12), where, write_module.write)
    for array in (keys, values):
        pinned = max(sinks - start, 0)
        assert len(array.written) == KV * (LENGTH - sinks + pinned)
        assert len(array.written) == len(np.unique(array.written))


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


def test_sinks_are_seen_from_the_end_of_the_rows_own_ring():
    """A layer whose window is no longer than a ring has no sinks there, and no say."""

    def layer(*classes):
        arrays = (np.zeros((count, 1, 1, 1)) for count, _, _ in classes)
        return tuple(
            Ring(array, array, window, sinks)
            for array, (_, window, sinks) in zip(arrays, classes, strict=True)
        )

    slot = np.arange(3, dtype=np.int32)
    layers = (layer((4, 12, 4), (2, 20, 0)), layer((4, 12, 4), (2, 36, 4)))
    for order in (layers, layers[::-1]):
        assert horizons(order, slot, 2).tolist() == [15, 15, 39]
    assert horizons(layers, slot, 1).tolist() == [15, 15, 15]
    assert horizons((layer((4, None, 0), (2, 20, 0)),), slot, 2) is None


@functools.cache
def attention(mesh, mode, block=4):
    sizes = {"batch": SLOTS, "heads": HEADS, "kv_heads": KV}
    layout = resolve(ShardingRules(), build_mesh(parse_mesh(mesh)), sizes)
    attend = RingAttention(layout, block, mode)

    @jax.jit
    def run(q, k, v, ring, where):
        out, (ring,) = attend(Asked(q, k, v), (ring,), where)
        return out, ring

    return run


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
    out, new = attention(mesh, "prefill")(q, k, v, old, where)
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
    out, new = attention(mesh, "decode")(q, k, v, old, where)
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
    padded, ring = attention("1", "decode")(q, k, v, old, where)
    few = jax.tree.map(lambda x: x[:SLOTS], where)
    out, plain = attention("1", "decode")(q[:SLOTS], k[:SLOTS], v[:SLOTS], old, few)
    np.testing.assert_array_equal(padded[:SLOTS], out)
    np.testing.assert_array_equal(padded[SLOTS:], 0)
    np.testing.assert_array_equal(ring.keys, plain.keys)


@pytest.mark.parametrize("mode", ["prefill", "decode", "narrow"])
def test_what_a_former_tenant_left_does_not_matter(mode):
    """A slot opened at position 0 over NaN gives the bits it gives over zeros."""
    where = rows([2, 0], [0, 0], [1, 1]) if mode != "decode" else rows(range(4), [0] * 4, [1] * 4)
    q, k, v, old = random_case(where, 3 if mode == "prefill" else 1)
    results = []
    for junk in (0, np.nan):
        stale = dataclasses.replace(
            old, keys=np.full_like(old.keys, junk), values=np.full_like(old.values, junk)
        )
        results.append(attention("1", mode)(q, k, v, stale, where)[0])
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all()


def test_a_ring_of_another_dtype_keeps_its_own():
    """On the CPU the ring is float32 while activations are bfloat16."""
    where = rows(range(4), [2] * 4, [1] * 4)
    q, k, v, old = random_case(where, 1)
    half = (jnp.asarray(array, jnp.bfloat16) for array in (q, k, v))
    out, new = attention("1", "decode")(*half, old, where)
    assert out.dtype == jnp.bfloat16
    assert new.keys.dtype == new.values.dtype == jnp.float32
