"""Blocked attention over rings against a dense softmax, and what must not change a row's bits."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.cache.held import Ring
from tpuinfer.ops import attention

KV, GROUP, HEAD = 2, 3, 4


def dense(q, k, v, valid):
    """Queries [R, K, G, T, H] scaled, k and v [R, K, S, H], valid [R, T, S] -> [R, T, K, G, H]."""
    result = np.zeros(q.shape)
    for r, kh, g, t in np.ndindex(q.shape[:4]):
        seen = valid[r, t]
        if seen.any():
            scores = k[r, kh, seen].astype(np.float64) @ q[r, kh, g, t]
            weights = np.exp(scores - scores.max())
            result[r, kh, g, t] = weights @ v[r, kh, seen] / weights.sum()
    return np.moveaxis(result, 3, 1)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """Rings of 4 slots, and rows that read them: each row's newest position and its queries'."""

    newest: np.ndarray
    queries: np.ndarray
    slots: np.ndarray | None = None
    length: int = 16
    window: int | None = None
    sinks: int = 0
    block: int = 4
    seed: int = 0

    @property
    def arrays(self):
        """q, keys, values; the rings' slots are those of the rows when slots is None."""
        rows, width = self.queries.shape
        return (
            normal(self.seed, rows, KV, GROUP, width, HEAD),
            normal(self.seed + 1, 4, KV, self.length, HEAD),
            normal(self.seed + 2, 4, KV, self.length, HEAD),
        )

    def valid(self):
        """What each query may see, by a list of who wrote what: [R, T, L]."""
        columns = [written(int(newest), self.length, self.sinks) for newest in self.newest]
        held, at = np.stack(columns)[:, None], self.queries[:, :, None]
        near = True if self.window is None else held > at - self.window
        return (held >= 0) & (held <= at) & (near | (held < self.sinks))

    def attend(self, arrays=None, sink_q=None):
        q, keys, values = arrays or self.arrays
        ring = Ring(keys, values, self.window, self.sinks)
        queries = attention.Queries(q, sink_q, self.queries)
        return attend(queries, ring, self.slots, self.newest, self.block)

    def run(self, arrays=None, sink_q=None):
        return np.asarray(finish(self.attend(arrays, sink_q)))


@functools.partial(jax.jit, static_argnames="block")
def attend(queries, ring, slots, newest, block):
    begun = attention.begin(queries.main)
    return attention.attend_ring(begun, queries, ring, slots=slots, newest=newest, block=block)


@functools.partial(jax.jit, static_argnames="window")
def attend_chunk(seen, q, k, v, length, window=None, sinks=None):
    chunk = attention.Columns(k, v)
    return attention.attend_chunk(seen, q, chunk, length, window=window, sinks=sinks)


begin, finish = jax.jit(attention.begin), jax.jit(attention.finish)


def written(newest, length, sinks=0):
    """Which position each column holds after positions 0 .. newest were written in turn."""
    columns = [-1] * length
    for position in range(newest + 1):
        turning = sinks + (position - sinks) % (length - sinks)
        columns[position if position < sinks else turning] = position
    return np.array(columns)


DECODE = Case(
    newest=np.array([0, 6, 15, 37], np.int32), queries=np.array([[0], [6], [15], [37]], np.int32)
)
PREFILL = Case(
    newest=np.array([15, -1, 20], np.int32),
    queries=np.array([[16, 17], [0, 1], [21, 22]], np.int32),
    slots=np.array([3, 0, 2], np.int32),
)
VERIFY = Case(  # several queries that are in the ring already: each sees up to itself
    newest=np.array([3, 9, 12, 30], np.int32),
    queries=np.array([[1, 2, 3], [7, 8, 9], [10, 11, 12], [28, 29, 30]], np.int32),
)
WINDOW = dataclasses.replace(DECODE, window=5)
SINKS = dataclasses.replace(PREFILL, window=10, sinks=4)  # what they hold is seen at the rows' ends
FEW = dataclasses.replace(  # fewer tokens than sinks, as many, one more, and a ring that is full
    DECODE,
    newest=np.array([1, 3, 4, 16], np.int32),
    queries=np.array([[1], [3], [4], [16]], np.int32),
    window=12,
    sinks=4,
)
CASES = pytest.mark.parametrize(
    "case",
    [DECODE, PREFILL, VERIFY, WINDOW, SINKS, FEW],
    ids=["decode", "prefill", "k", "window", "sinks", "few"],
)


@given(newest=st.integers(-1, 40), length=st.sampled_from([5, 8, 12]), sinks=st.integers(0, 4))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_column_holds_what_a_list_says(newest, length, sinks):
    columns = np.arange(length, dtype=np.int32)
    held = attention.ring_positions(np.array([newest], np.int32), columns, length, sinks)[0]
    np.testing.assert_array_equal(np.maximum(held, -1), written(newest, length, sinks))
    real = np.asarray(held)[np.asarray(held) >= 0]
    found = attention.ring_column(real, length, sinks)
    np.testing.assert_array_equal(found, columns[np.asarray(held) >= 0])


@CASES
def test_by_a_dense_softmax(case):
    q, keys, values = case.arrays
    if case.slots is not None:
        keys, values = keys[case.slots], values[case.slots]
    expected = dense(q, keys, values, case.valid())
    np.testing.assert_allclose(case.run(), expected, rtol=1e-5, atol=1e-6)


@CASES
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_a_former_tenant_left_is_not_seen(case, junk):
    """Columns that no query of a row sees are poisoned, in keys and in values."""
    q, keys, values = case.arrays
    slots = np.arange(4) if case.slots is None else case.slots
    used = np.zeros((4, case.length), bool)
    used[slots] = case.valid().any(axis=1)
    poisoned = (np.where(used[:, None, :, None], ring, np.float32(junk)) for ring in (keys, values))
    np.testing.assert_array_equal(case.run((q, *poisoned)), case.run())


def test_a_longer_neighbour_changes_no_bit():
    alone = dataclasses.replace(
        DECODE,
        newest=np.array([2, -1, -1, -1], np.int32),
        queries=np.array([[2], [0], [0], [0]], np.int32),
    )
    for newest in (3, 8, 15, 40):
        others = np.array([2, newest, newest, 7], np.int32)
        crowded = dataclasses.replace(alone, newest=others, queries=others[:, None])
        np.testing.assert_array_equal(crowded.run()[0], alone.run()[0])


def test_rows_may_change_places():
    order = np.array([2, 0, 3, 1])
    q, keys, values = DECODE.arrays
    moved = dataclasses.replace(DECODE, newest=DECODE.newest[order], queries=DECODE.queries[order])
    result = moved.run((q[order], keys[order], values[order]))
    np.testing.assert_array_equal(result, DECODE.run()[order])


def test_the_rows_of_a_slot_are_read_wherever_it_is():
    """`slots` gathers: the same rows without a gather give the same bits."""
    q, keys, values = PREFILL.arrays
    gathered = (q, keys[PREFILL.slots], values[PREFILL.slots])
    result = dataclasses.replace(PREFILL, slots=None).run(gathered)
    np.testing.assert_array_equal(result, PREFILL.run())


@CASES
def test_block_sizes_agree(case):
    whole = dataclasses.replace(case, block=case.length).run()
    np.testing.assert_allclose(case.run(), whole, rtol=1e-5, atol=1e-6)


def test_a_row_that_sees_nothing_gives_zeros():
    case = dataclasses.replace(DECODE, newest=np.array([-1, 3, 3, -1], np.int32))
    result = case.run()
    np.testing.assert_array_equal(result[[0, 3]], 0)
    assert (result[[1, 2]] != 0).all()


def test_within_a_chunk_by_a_dense_softmax():
    """Causal, and blind to padding, which is poisoned."""
    width, lengths = 5, np.array([5, 3, 0], np.int32)
    q = normal(0, 3, KV, GROUP, width, HEAD)
    k, v = (normal(seed, 3, KV, width, HEAD) for seed in (1, 2))
    real = np.arange(width)[None] < lengths[:, None]
    valid = np.tril(np.ones((width, width), bool))[None] & real[:, None, :]
    k, v = (np.where(real[:, None, :, None], array, np.float32(np.nan)) for array in (k, v))
    seen = attend_chunk(begin(q), q, k, v, lengths)
    expected = dense(q, k, v, valid)
    np.testing.assert_allclose(finish(seen), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_within_a_chunk_a_window_and_the_sinks(window):
    """Rows of which all, some and none of the chunk's first tokens are sinks."""
    width, lengths, sinks = 5, np.array([5, 4, 5], np.int32), np.array([2, 1, 0], np.int32)
    q = normal(0, 3, KV, GROUP, width, HEAD)
    k, v = (normal(seed, 3, KV, width, HEAD) for seed in (1, 2))
    index = np.arange(width)
    age = index[:, None] - index
    causal = (age >= 0)[None] & (index < lengths[:, None])[:, None]
    near, pinned = (age < window)[None], (index < sinks[:, None])[:, None]
    for first, valid in ((None, causal & near), (sinks, causal & (near | pinned))):
        result = finish(attend_chunk(begin(q), q, k, v, lengths, window, first))
        expected = dense(q, k, v, valid)
        real = index < lengths[:, None]  # what a padded query sees is nobody's affair
        np.testing.assert_allclose(result[real], expected[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [SINKS, FEW], ids=["sinks", "few"])
def test_sinks_are_scored_by_queries_of_their_own(case):
    """As if their keys were those that give these scores; they are written and below the query."""
    q, keys, values = case.arrays
    own, valid = normal(9, *q.shape), case.valid()
    if case.slots is not None:
        keys, values = keys[case.slots], values[case.slots]
    first = np.arange(case.length) < case.sinks
    rest = dense_parts(q, keys, values, valid & ~first)
    pinned = dense_parts(own, keys, values, valid & first)
    total = rest[1] + pinned[1]
    expected = (rest[0] + pinned[0]) / np.where(total > 0, total, 1)
    np.testing.assert_allclose(case.run(sink_q=own), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(case.run() - expected).max() > 0.01


def dense_parts(q, k, v, valid):
    """Sums of weighted values and of weights, [R, T, K, G, H] and [R, T, K, G, 1]."""
    scores = np.einsum("rkgth,rksh->rtkgs", q.astype(np.float64), k)
    weights = np.where(valid[:, :, None, None], np.exp(scores), 0)
    return np.einsum("rtkgs,rksh->rtkgh", weights, v), weights.sum(-1, keepdims=True)


def test_ring_and_chunk_make_one_softmax():
    q, keys, values = PREFILL.arrays
    k, v = (normal(seed, 3, KV, 2, HEAD) for seed in (7, 8))
    length = np.array([2, 1, 2], np.int32)
    result = finish(attend_chunk(PREFILL.attend(), q, k, v, length))
    causal = np.tril(np.ones((2, 2), bool))[None] & (np.arange(2) < length[:, None])[:, None]
    expected = dense(
        q,
        np.concatenate([keys[PREFILL.slots], k], axis=2),
        np.concatenate([values[PREFILL.slots], v], axis=2),
        np.concatenate([PREFILL.valid(), causal], axis=2),
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow():
    q, keys, values = DECODE.arrays
    result = DECODE.run((q * 300, keys * 300, values))
    expected = dense(q * 300, keys * 300, values, DECODE.valid())
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_split_heads_by_hand():
    """Query head n belongs to KV head n // G; scaled by 1 / sqrt(H)."""
    q = np.arange(1 * 2 * 6 * 4, dtype=np.float32).reshape(1, 2, 6, 4)
    result = attention.split_heads(jnp.asarray(q), 2, jnp.dtype(jnp.float32))
    assert result.shape == (1, 2, 3, 2, 4)
    for head in range(6):
        np.testing.assert_array_equal(result[0, head // 3, head % 3], q[0, :, head] / 2)


def test_a_bfloat16_ring_accumulates_in_float32():
    q, keys, values = (jnp.asarray(array, jnp.bfloat16) for array in DECODE.arrays)
    text = jax.jit(attention.update).lower(
        attention.begin(q), q, attention.Columns(keys, values), jnp.ones((4, 1, 16), bool)
    )
    dots = [line for line in text.as_text().splitlines() if "dot_general" in line]
    assert len(dots) == 2
    assert all("bf16" in line and line.endswith("xf32>") for line in dots)
