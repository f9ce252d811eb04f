"""Attention over ring-buffer caches, in blocks of fixed size with a running softmax.

The order of every reduction depends on a row's own positions only. A neighbour that is longer makes
the loop visit more blocks, but those are wholly masked for this row, and a wholly masked block
changes nothing: its weights are exp(-inf) = 0 and its rescaling factor is exp(0) = 1.

Keys and values in columns that are not valid are masked in the scores *and* in the values: what a
former tenant left there may be NaN, and 0 x NaN is NaN.

Letters: R rows, B slots, T queries per row, N query heads, K KV heads, G = N / K, H head dim,
L ring length, S block of columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEG = -1e30
"""Masked score. Finite: a row with no valid column at all must not make NaN."""


class Softmax(NamedTuple):
    """Running softmax: highest score, sum of weights and weighted values so far, float32.

    Shapes: highest and total [R, K, G, T, 1], values [R, K, G, T, H].
    """

    highest: jax.Array
    total: jax.Array
    values: jax.Array


def begin(q: jax.Array) -> Softmax:
    """Nothing seen yet, for queries [R, K, G, T, H]."""
    thin = (*q.shape[:-1], 1)
    zeros = jnp.zeros(thin, jnp.float32)
    return Softmax(jnp.full_like(zeros, _NEG), zeros, jnp.zeros(q.shape, jnp.float32))


def update(seen: Softmax, q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array) -> Softmax:
    """Take in one block of columns.

    Args:
      q: [R, K, G, T, H], already scaled by 1 / sqrt(H), in the dtype of k.
      k, v: [R, K, S, H].
      valid: [R, T, S] bool, which column each query may see.
    """
    mask = valid[:, None, None]
    scores = jnp.einsum("RKGTH,RKSH->RKGTS", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, _NEG)
    highest = jnp.maximum(seen.highest, scores.max(axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(scores - highest), 0.0)
    shrink = jnp.exp(seen.highest - highest)
    seen_by_any = valid.any(axis=1)[:, None, :, None]
    clean = jnp.where(seen_by_any, v, jnp.zeros((), v.dtype))
    values = jnp.einsum(
        "RKGTS,RKSH->RKGTH", weights.astype(v.dtype), clean, preferred_element_type=jnp.float32
    )
    return Softmax(
        highest,
        seen.total * shrink + weights.sum(axis=-1, keepdims=True),
        seen.values * shrink + values,
    )


def finish(seen: Softmax) -> jax.Array:
    """The attention output [R, T, K, G, H] float32; zeros for a query that saw nothing."""
    total = jnp.where(seen.total > 0, seen.total, 1.0)
    return jnp.moveaxis(seen.values / total, 3, 1)


def ring_positions(newest: jax.Array, columns: jax.Array, length: int) -> jax.Array:
    """Which position each ring column holds, when `newest` was written last: [R, S] int32.

    Position p lies in column p mod L, so a column's age is (newest - column) mod L. Negative
    results are columns that were never written.

        L = 4, newest = 5     column     0   1   2   3
                              holds      4   5   2   3
        L = 4, newest = 1     holds      0   1  -2  -1
    """
    newest = newest[:, None]
    return newest - jnp.mod(newest - columns[None, :], length)


def attend_ring(
    seen: Softmax,
    q: jax.Array,
    ring: tuple[jax.Array, jax.Array],
    *,
    slots: jax.Array | None,
    newest: jax.Array,
    queries: jax.Array,
    block: int,
) -> Softmax:
    """Attend to what a ring holds, block by block, as far as the longest row needs.

    Args:
      q: [R, K, G, T, H] scaled queries.
      ring: keys and values, each [B, K, L, H]; L is a multiple of `block`.
      slots: [R] which slot each row reads (clamped); None = row r reads slot r, R = B.
      newest: [R] last position written to each row's ring; -1 for an empty one.
      queries: [R, T] position of each query; a query sees columns at or before its own.
    """
    keys, values = ring
    length = keys.shape[2]
    needed = jnp.minimum(newest.max() + 1, length)
    trips = (needed + block - 1) // block

    def visit(index: jax.Array, seen: Softmax) -> Softmax:
        start = index * block
        columns = start + jnp.arange(block, dtype=jnp.int32)
        held = ring_positions(newest, columns, length)[:, None, :]
        valid = (held >= 0) & (held <= queries[:, :, None])
        k, v = (_block(array, slots, start, block) for array in (keys, values))
        return update(seen, q, k, v, valid)

    return jax.lax.fori_loop(0, trips, visit, seen)


def _block(array: jax.Array, slots: jax.Array | None, start: jax.Array, block: int) -> jax.Array:
    """Columns start : start + block of the rings of `slots`: [R, K, S, H]."""
    if slots is None:
        return jax.lax.dynamic_slice_in_dim(array, start, block, axis=2)
    size = (1, array.shape[1], block, array.shape[3])
    zero = jnp.zeros((), start.dtype)

    def one(slot: jax.Array) -> jax.Array:
        at = (slot.astype(start.dtype), zero, start, zero)
        return jax.lax.dynamic_slice(array, at, size)[0]

    return jax.vmap(one)(slots)


def attend_chunk(
    seen: Softmax, q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array
) -> Softmax:
    """Attend causally within a chunk that is not in the ring yet.

    Args:
      q: [R, K, G, T, H] scaled queries. k, v: [R, K, T, H].
      length: [R] how many of the T tokens are real; the rest is padding.
    """
    index = jnp.arange(q.shape[3], dtype=jnp.int32)
    causal = index[None, :, None] >= index[None, None, :]
    return update(seen, q, k, v, causal & (index[None, None, :] < length[:, None, None]))


def split_heads(q: jax.Array, kv_heads: int, dtype: jnp.dtype) -> jax.Array:
    """[R, T, N, H] queries -> [R, K, G, T, H], scaled by 1 / sqrt(H), in the ring's dtype."""
    rows, width, heads, head_dim = q.shape
    scaled = q.astype(jnp.float32) * (head_dim**-0.5)
    grouped = scaled.reshape(rows, width, kv_heads, heads // kv_heads, head_dim)
    return jnp.moveaxis(grouped, 1, 3).astype(dtype)
