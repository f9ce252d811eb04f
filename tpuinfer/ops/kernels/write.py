"""New rows of rings, as one Pallas kernel for TPUs: tiles of 128 columns, read and written back.

XLA's scatter does not stay in place everywhere:

    turned    where a head's numbers do not fill the 128 lanes of a tile, the compiler lays
              [B, K, L, H] out as [B, K, H, L] (`ring.turned`), and a scatter turns the ring around
    chunks    a ring of a few MB is brought to VMEM, gets its rows there, and is written back whole

Letters: as in `ops.attention`; 128 columns of a visit.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpuinfer.ops.kernels.visits import Columns, held_position, list_visits

_LANES = 128
_LEAST = 8
"""Rows that a product needs; fewer are filled up."""
_MOST_BYTES = 2 << 20
"""Of a row's new keys, or values, which VMEM holds two of at a time."""


class _Scalars(NamedTuple):
    """Prefetched: the visits as `Visits` has them; start, newest: [R] int32."""

    who: Any
    ring: Any
    start: Any
    newest: Any


def takes(keys: jax.Array, width: int) -> bool:
    """Whether rings [B, K, L, H] and chunks of `width` rows are of sizes that the kernel takes."""
    _, kv_heads, length, head_dim = keys.shape
    lanes = -(-head_dim // _LANES) * _LANES
    return length % _LANES == 0 and kv_heads * width * lanes * keys.dtype.itemsize <= _MOST_BYTES


def write_rows(
    rings: tuple[jax.Array, jax.Array],
    new: tuple[jax.Array, jax.Array],
    slots: jax.Array,
    start: jax.Array,
    length: jax.Array,
    *,
    sinks: int,
    turned: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Keys and values with new rows in their columns; the rest is left as it lies.

    Args:
      rings: keys and values [B, K, L, H]; 128 divides L.
      new: [R, K, T, H] of the same dtype, bit by bit as the ring keeps them.
      slots, start, length: [R] int32, as `cache.ring.Rows` has them. Slots of rows that are not
        idle differ.
      turned: the rings lie as [B, K, H, L].
    """
    kv_heads, ring_length, head_dim = rings[0].shape[1:]
    columns = Columns(ring_length, _LANES, sinks=sinks)
    newest = start + length - 1
    span = _span(columns, start, newest)
    most = min(columns.blocks, (new[0].shape[2] + sinks + 2 * _LANES - 2) // _LANES)
    visits = list_visits(slots, columns, span, most=most)
    fill = max(0, _LEAST - new[0].shape[2])
    given = [jnp.pad(one, ((0, 0), (0, 0), (0, fill), (0, 0))) for one in new]
    lying = [jnp.swapaxes(one, 2, 3) if turned else one for one in rings]
    if not interpret:
        lying = [pltpu.with_memory_space_constraint(one, pltpu.HBM) for one in lying]
    scalars = _Scalars(visits.who, visits.ring, start, newest)

    def at_row(visit: Any, *prefetched: Any) -> tuple[Any, ...]:
        return jnp.maximum(_Scalars(*prefetched).who[visit], 0), 0, 0, 0

    def at_ring(visit: Any, *prefetched: Any) -> tuple[Any, ...]:
        place = _Scalars(*prefetched).ring[visit]
        slot, block = jax.lax.div(place, columns.blocks), jax.lax.rem(place, columns.blocks)
        return (slot, 0, 0, block) if turned else (slot, 0, block, 0)

    new_spec = pl.BlockSpec((1, kv_heads, given[0].shape[2], head_dim), at_row)
    tile = (head_dim, _LANES) if turned else (_LANES, head_dim)
    ring_spec = pl.BlockSpec((1, kv_heads, *tile), at_ring)
    touched = 2 * given[0].shape[0] * kv_heads * head_dim * rings[0].dtype.itemsize
    call = pl.pallas_call(
        functools.partial(_kernel, columns, turned),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(visits.total,),
            in_specs=[new_spec, new_spec, ring_spec, ring_spec],
            out_specs=[ring_spec, ring_spec],
        ),
        out_shape=[jax.ShapeDtypeStruct(one.shape, one.dtype) for one in lying],
        input_output_aliases={len(scalars) + 2: 0, len(scalars) + 3: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=touched * (2 * most * _LANES + given[0].shape[2]),
        ),
        interpret=interpret,
        name="ring_write",
    )
    keys, values = call(*scalars, *given, *lying)
    return (jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)) if turned else (keys, values)


def _span(columns: Columns, start: jax.Array, newest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[R, 1] the first block that a chunk writes to, and how many from there on, round the ring.

    Of a chunk longer than the ring only the newest rows are written, beside the sinks.
    """
    length, sinks = columns.length, columns.sinks
    turning = length - sinks

    def column(position: jax.Array) -> jax.Array:
        return jnp.where(position < sinks, position, sinks + jnp.mod(position - sinks, turning))

    from_, to = column(start) // columns.block, column(newest) // columns.block
    count = jnp.mod(to - from_, columns.blocks) + 1
    all_round = (newest - start >= turning) | ((from_ == to) & (column(newest) < column(start)))
    count = jnp.where(all_round, columns.blocks, count)
    return from_[:, None], jnp.where(newest >= start, count, 0)[:, None]


def _kernel(columns: Columns, turned: bool, *refs: Any) -> None:
    scalars = _Scalars(*refs[: len(_Scalars._fields)])
    visit = pl.program_id(0)
    row = jnp.maximum(scalars.who[visit], 0)
    block = jax.lax.rem(scalars.ring[visit], columns.blocks)
    start, newest = scalars.start[row], scalars.newest[row]
    news, olds, outs = (refs[at : at + 2] for at in range(len(scalars), len(refs), 2))
    tokens, kv_heads = news[0].shape[2], news[0].shape[1]
    along = 1 if turned else 0
    shape, both = ((1, _LANES), (tokens, _LANES)) if turned else ((_LANES, 1), (_LANES, tokens))
    column = block * _LANES + jax.lax.broadcasted_iota(jnp.int32, shape, along)
    token = held_position(columns, newest, column) - start
    picked = jax.lax.broadcasted_iota(jnp.int32, both, 1 - along) == token
    for new, old, out in zip(news, olds, outs, strict=True):
        for head in range(kv_heads):
            placed = _placed(new[0, head], picked, turned)
            out[0, head] = jnp.where(token >= 0, placed, old[0, head])


def _placed(new: Any, picked: Any, turned: bool) -> Any:
    """[T, H] rows where they belong in a tile, by a product with ones and zeros.

    Numbers stay as they are. Bytes multiply as the whole numbers that they are, of which bfloat16
    has all up to 256.

    Args:
      picked: [T, 128] or, of rings that do not lie turned, [128, T]: which row goes where.

    Returns:
      [H, 128], or [128, H].
    """
    exact, kept = new.dtype == jnp.float32, new.dtype
    dtype = jnp.float32 if exact else jnp.bfloat16
    whole = jnp.issubdtype(kept, jnp.integer)
    rows = (new.astype(jnp.int32).astype(jnp.float32) if whole else new).astype(dtype)
    ones = picked.astype(jnp.float32).astype(dtype)
    made = jax.lax.dot_general(
        *((rows, ones) if turned else (ones, rows)),
        (((0,), (0,)) if turned else ((1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
    return made.astype(jnp.int32).astype(kept) if whole else made.astype(kept)
