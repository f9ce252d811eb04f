"""Rows go into rings, in place: one scatter of the new rows, or a kernel's write.

Local shapes throughout: called inside shard_map. Padding and idle rows never write, as their index
lies outside the array and is dropped.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import layout as memory

from tpuinfer.cache.by_kernel import Kernel
from tpuinfer.cache.held import Ring, Rows
from tpuinfer.ops import attention
from tpuinfer.quant import rows as rows_of
from tpuinfer.quant.rows import Rounded


def put(
    ring: Ring,
    k: Rounded,
    v: Rounded,
    rows: Rows,
    kernel: Kernel | None = None,
    dealt: attention.Dealt | None = None,
) -> Ring:
    """`write`, whose result lies in memory as the ring did.

    With one KV head there are two orders of the same bytes; if the compiler chose the other one
    for what is written, it would copy the ring from one to the other and back. What lies turned,
    and chunks, kernels write.
    """
    if kernel and kernel.writes(ring, k.values.shape[2]):
        where = (rows.slot, rows.start, rows.length)
        keys, values = kernel.write(ring, (k, v), where)
        written = dataclasses.replace(ring, keys=keys, values=values)
        return _with_scales(written, k, v, _putter(ring, k, rows))

    def as_it_was(array: jax.Array) -> jax.Array:
        return memory.with_layout_constraint(array, memory.Layout(tuple(range(array.ndim))))

    lies_so: Ring = jax.tree.map(as_it_was, write(ring, k, v, rows, dealt))
    return lies_so


def write(
    ring: Ring, k: Rounded, v: Rounded, rows: Rows, dealt: attention.Dealt | None = None
) -> Ring:
    """Put new keys and values into their columns; local shapes, call it inside shard_map.

    Args:
      k, v: [R, K, T, H], and their scales if the ring has any. rows: of R rows.
      dealt: which of a longer ring's columns L are of; the others are not written. None = all.

    The ring is viewed as [B * K * L, H], so that one scatter touches the new rows only:

        B = 2, K = 1, L = 4; slot 1 holds positions 0..2, a chunk of 2 (and 1 of padding) at start 3

        column        0  1  2  3 | 0  1  2  3          flat index of position p in slot 1:
        before        .  .  .  . | 0  1  2  .             (1 * K + head) * L + p mod L
        after         .  .  .  . | 4  1  2  3          padding: index B * K * L, dropped

    Of a chunk longer than the ring only the newest tokens are written, each column once:

        L = 4, a chunk of 6 at start 0      after    4  5  2  3
    """
    put = _putter(ring, k, rows, dealt)
    written = dataclasses.replace(
        ring,
        keys=put(ring.keys, rows_of.as_stored(k.values)),
        values=put(ring.values, rows_of.as_stored(v.values)),
    )
    return _with_scales(written, k, v, put)


_Put = Callable[[jax.Array, jax.Array], jax.Array]


def _putter(ring: Ring, k: Rounded, rows: Rows, dealt: attention.Dealt | None = None) -> _Put:
    """What puts [R, K, T, ...] into an array [B, K, L, ...] of the ring."""
    slots, kv_heads, length, _ = ring.keys.shape
    width = k.values.shape[2]
    whole = length if dealt is None else length * dealt.of
    turning = whole - ring.sinks
    positions = rows.positions(width)
    index = jnp.arange(width, dtype=jnp.int32)[None, :]
    real = index < rows.length[:, None]
    if width > turning:
        stays = (index >= rows.length[:, None] - turning) | (positions < ring.sinks)
        real &= stays
    heads = jnp.arange(kv_heads, dtype=jnp.int32)
    base = (rows.slot[:, None] * kv_heads + heads[None, :]) * length
    columns = attention.ring_column(positions, whole, ring.sinks)
    if dealt is not None:
        mine, columns = dealt.own(columns)
        real &= mine
    flat = base[:, :, None] + columns[:, None, :]
    flat = jnp.where(real[:, None, :], flat, slots * kv_heads * length).reshape(-1)

    def put(array: jax.Array, new: jax.Array) -> jax.Array:
        row = array.shape[3:]
        put_in = array.reshape(-1, *row).at[flat].set(new.reshape(-1, *row), mode="drop")
        return put_in.reshape(array.shape)

    return put


def _with_scales(ring: Ring, k: Rounded, v: Rounded, put: _Put) -> Ring:
    if ring.key_scale is None or ring.value_scale is None:
        return ring
    assert k.scale is not None
    assert v.scale is not None
    return dataclasses.replace(
        ring, key_scale=put(ring.key_scale, k.scale), value_scale=put(ring.value_scale, v.scale)
    )
