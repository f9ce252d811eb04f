"""Attention over ring-buffer caches, in blocks of fixed size with a running softmax.

The order of every reduction depends on a row's own positions only. A neighbour that is longer makes
the loop visit more blocks, but those are wholly masked for this row, and a wholly masked block
changes nothing: its weights are exp(-inf) = 0 and its rescaling factor is exp(0) = 1.

Keys and values in columns that are not valid are masked in the scores *and* in the values: what a
former tenant left there may be NaN, and 0 x NaN is NaN.

Letters: R rows, B slots, T queries per row, N query heads, K KV heads, G = N / K, H head dim,
L ring length, S block of columns.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tpuinfer.quant.rows import as_codes

_NEG = -1e30
"""Masked score. Finite: a row with no valid column at all must not make NaN."""


class Ring(Protocol):
    """What attention needs of a ring: `tpuinfer.cache.ring.Ring` is the real one."""

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None
    value_scale: jax.Array | None
    window: int | None
    sinks: int


class Columns(NamedTuple):
    """Keys and values that queries are put to.

    Attributes:
      k, v: [R, K, S, H], in the dtype of the queries, or codes.
      k_scale, v_scale: [R, K, S] float32, of codes, one a row; None = k and v are what they are.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


class Softmax(NamedTuple):
    """Running softmax: highest score, sum of weights and weighted values so far, float32.

    Shapes: highest and total [R, K, G, T, 1], values [R, K, G, T, H].
    """

    highest: jax.Array
    total: jax.Array
    values: jax.Array


class Queries(NamedTuple):
    """The queries of one program call.

    Attributes:
      main: [R, K, G, T, H], rotated to their own positions, scaled, in the dtype that multiplies.
      sinks: the same, rotated as the sinks see them; None = as `main`.
      positions: [R, T] int32 position of each query.
      cap: scores are bent to stay within +-cap (arXiv:2408.00118); None = not at all.
    """

    main: jax.Array
    sinks: jax.Array | None
    positions: jax.Array
    cap: float | None = None


@dataclass(frozen=True)
class Dealt:
    """Which columns a device has of rings that are cut along their length.

    Columns are dealt out one by one. So devices share what a short row has, and where a column lies
    does not depend on the length of its ring.

        L = 6, of 2      column       0  1  2  3  4  5
                         device       0  1  0  1  0  1
                         there as     0  0  1  1  2  2

    Attributes:
      index: int32, this device's number. of: how many devices.
    """

    index: jax.Array
    of: int

    def numbers(self, columns: jax.Array) -> jax.Array:
        """Which columns of the ring the device's own are."""
        return columns * self.of + self.index

    def own(self, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of columns of the ring: whether the device has them, and as which of its own."""
        return columns % self.of == self.index, columns // self.of

    def first(self, count: jax.Array) -> jax.Array:
        """How many of a ring's first columns the device has."""
        return (count + (self.of - 1 - self.index)) // self.of


def begin(q: jax.Array, sink_logits: jax.Array | None = None) -> Softmax:
    """Nothing seen yet, for queries [R, K, G, T, H].

    Args:
      sink_logits: [N] learned scores, one a head, of a column that has no value: they take part in
        the softmax and in nothing else. None = there is none.
    """
    thin, values = (*q.shape[:-1], 1), jnp.zeros(q.shape, jnp.float32)
    if sink_logits is not None:
        heads = sink_logits.astype(jnp.float32).reshape(1, q.shape[1], q.shape[2], 1, 1)
        return Softmax(jnp.broadcast_to(heads, thin), jnp.ones(thin, jnp.float32), values)
    return Softmax(jnp.full(thin, _NEG, jnp.float32), jnp.zeros(thin, jnp.float32), values)


def update(
    seen: Softmax,
    q: jax.Array,
    columns: Columns,
    valid: jax.Array,
    cap: float | None = None,
) -> Softmax:
    """Take in one block of columns.

    Args:
      q: [R, K, G, T, H], already scaled. A row's scale is applied after its dot.
      valid: [R, T, S] bool, which column each query may see.
      cap: as in `Queries`.
    """
    mask = valid[:, None, None]
    k, v = columns.k.astype(q.dtype), columns.v.astype(q.dtype)
    scores = jnp.einsum("RKGTH,RKSH->RKGTS", q, k, preferred_element_type=jnp.float32)
    if columns.k_scale is not None:
        scores = scores * columns.k_scale[:, :, None, None, :]
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(mask, scores, _NEG)
    highest = jnp.maximum(seen.highest, scores.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - highest), 0.0)
    shrink = jnp.exp(seen.highest - highest)
    seen_by_any = valid.any(axis=1)[:, None, :, None]
    clean = jnp.where(seen_by_any, v, jnp.zeros((), v.dtype))
    shares = weights
    if columns.v_scale is not None:
        shares = jnp.where(mask, weights * columns.v_scale[:, :, None, None, :], 0.0)
    values = jnp.einsum(
        "RKGTS,RKSH->RKGTH", shares.astype(v.dtype), clean, preferred_element_type=jnp.float32
    )
    return Softmax(
        highest,
        seen.total * shrink + weights.sum(axis=-1, keepdims=True),
        seen.values * shrink + values,
    )


def merge(seen: Softmax, parts: Softmax) -> Softmax:
    """Take in what others have seen of other columns.

    Args:
      parts: each array [P, ...]; they are summed in that order.
    """
    highest = jnp.maximum(seen.highest, parts.highest.max(axis=0))
    shrink = jnp.exp(seen.highest - highest)
    total, values = seen.total * shrink, seen.values * shrink
    for part in zip(*parts, strict=True):
        one = Softmax(*part)
        shrink = jnp.exp(one.highest - highest)
        total, values = total + one.total * shrink, values + one.values * shrink
    return Softmax(highest, total, values)


def finish(seen: Softmax) -> jax.Array:
    """The attention output [R, T, K, G, H] float32; zeros for a query that saw nothing."""
    total = jnp.where(seen.total > 0, seen.total, 1.0)
    return jnp.moveaxis(seen.values / total, 3, 1)


def ring_column(positions: jax.Array, length: int, sinks: int = 0) -> jax.Array:
    """The column of each position: the sinks keep theirs, the others go round the rest.

    L = 6, 2 sinks    position    0  1 | 2  3  4  5  6  7  8  9
                      column      0  1 | 2  3  4  5  2  3  4  5
    """
    turning = sinks + jnp.mod(positions - sinks, length - sinks)
    return jnp.where(positions < sinks, positions, turning)


def ring_positions(newest: jax.Array, columns: jax.Array, length: int, sinks: int = 0) -> jax.Array:
    """Which position each ring column holds, when `newest` was written last: [R, S] int32.

    Position p lies in column p mod L (see `ring_column` for sinks), so a column's age is
    (newest - column) mod L. Negative results are columns that were never written.

        L = 4, newest = 5             column     0   1   2   3
                                      holds      4   5   2   3
        L = 4, newest = 1             holds      0   1  -2  -1
        L = 4, newest = 5, 1 sink     holds      0   4   5   3
    """
    newest, columns = newest[:, None], columns[None, :]
    held = newest - jnp.mod(newest - columns, length - sinks)
    if sinks:
        pinned = jnp.where(columns <= newest, columns, -1)
        held = jnp.where(columns < sinks, pinned, jnp.where(held >= sinks, held, -1))
    return held


def attend_ring(
    seen: Softmax,
    queries: Queries,
    ring: Ring,
    *,
    slots: jax.Array | None,
    newest: jax.Array,
    block: int,
    dealt: Dealt | None = None,
) -> Softmax:
    """Attend to what a ring holds, block by block, as far as the longest row needs.

    A query sees the columns at or before its own position, the ring's window back, and its sinks.

    Args:
      ring: keys and values [B, K, L, H]; L is a multiple of `block`.
      slots: [R] which slot each row reads (clamped); None = row r reads slot r, R = B.
      newest: [R] last position written to each row's ring; -1 for an empty one.
      dealt: which columns of the whole ring L are of; None = all.
    """
    of = 1 if dealt is None else dealt.of
    length, sinks = ring.keys.shape[2] * of, ring.sinks
    at = queries.positions[:, :, None]
    if sinks:
        first = _numbers(dealt, jnp.arange(-(-sinks // of), dtype=jnp.int32))
        written = (first[None, :] <= newest[:, None])[:, None, :]
        if sinks % of:
            written &= first[None, None, :] < sinks
        q = queries.main if queries.sinks is None else queries.sinks
        pinned = _columns(ring, slots, jnp.int32(0), -(-sinks // of))
        seen = update(seen, q, pinned, written & (first[None, None, :] <= at), queries.cap)
    needed = jnp.minimum(newest.max() + 1, length)
    if dealt is not None:
        needed = dealt.first(needed)
    trips = (needed + block - 1) // block

    def visit(index: jax.Array, seen: Softmax) -> Softmax:
        start = index * block
        columns = _numbers(dealt, start + jnp.arange(block, dtype=jnp.int32))
        held = ring_positions(newest, columns, length, sinks)[:, None, :]
        valid = (held >= sinks) & (held <= at)
        if ring.window is not None:
            valid &= held > at - ring.window
        return update(seen, queries.main, _columns(ring, slots, start, block), valid, queries.cap)

    return jax.lax.fori_loop(0, trips, visit, seen)


def _numbers(dealt: Dealt | None, columns: jax.Array) -> jax.Array:
    return columns if dealt is None else dealt.numbers(columns)


def _columns(ring: Ring, slots: jax.Array | None, start: jax.Array, block: int) -> Columns:
    """Columns start : start + block of the rings of `slots`."""
    parts = (ring.keys, ring.values, ring.key_scale, ring.value_scale)
    k, v, *scales = (None if one is None else _block(one, slots, start, block) for one in parts)
    assert k is not None
    assert v is not None
    return Columns(as_codes(k), as_codes(v), *scales)


def _block(array: jax.Array, slots: jax.Array | None, start: jax.Array, block: int) -> jax.Array:
    """The same of one array [B, K, L, ...]: [R, K, S, ...]."""
    if slots is None:
        return jax.lax.dynamic_slice_in_dim(array, start, block, axis=2)
    rest = array.shape[3:]
    size = (1, array.shape[1], block, *rest)
    zero = jnp.zeros((), start.dtype)

    def one(slot: jax.Array) -> jax.Array:
        at = (slot.astype(start.dtype), zero, start, *(zero for _ in rest))
        return jax.lax.dynamic_slice(array, at, size)[0]

    return jax.vmap(one)(slots)


def attend_chunk(
    seen: Softmax,
    q: jax.Array,
    chunk: Columns,
    length: jax.Array,
    *,
    window: int | None = None,
    sinks: jax.Array | None = None,
    cap: float | None = None,
    first: jax.Array | None = None,
) -> Softmax:
    """Attend causally within a chunk that is not in the ring yet.

    Args:
      q: [R, K, G, T, H] scaled queries. chunk: T columns, as the ring will keep them; or S of them.
      length: [R] how many of the T tokens are real; the rest is padding.
      window: how many tokens a query looks back at, itself included; None = all.
      sinks: [R] how many of the chunk's first tokens all of it sees; None = none. A chunk that
        holds sinks is no longer than the ring, so they need no rotation of their own.
      cap: as in `Queries`.
      first: which token of the chunk is the first of the columns; None = they are all of it.
    """
    index = jnp.arange(q.shape[3], dtype=jnp.int32)
    own = index if first is None else first + jnp.arange(chunk.k.shape[2], dtype=jnp.int32)
    query, key = index[None, :, None], own[None, None, :]
    valid = (query >= key) & (key < length[:, None, None])
    if window is not None:
        near = query - key < window
        valid &= near if sinks is None else near | (key < sinks[:, None, None])
    return update(seen, q, chunk, valid, cap)


def split_heads(
    q: jax.Array, kv_heads: int, dtype: jnp.dtype, scale: float | None = None
) -> jax.Array:
    """[R, T, N, H] queries -> [R, K, G, T, H] in `dtype`, scaled.

    Args:
      scale: None = 1 / sqrt(H).
    """
    rows, width, heads, head_dim = q.shape
    scaled = q.astype(jnp.float32) * (head_dim**-0.5 if scale is None else scale)
    grouped = scaled.reshape(rows, width, kv_heads, heads // kv_heads, head_dim)
    return jnp.moveaxis(grouped, 1, 3).astype(dtype)
