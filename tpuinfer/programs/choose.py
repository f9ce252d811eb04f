"""The next token of every row, from logits that are cut over the devices along the vocabulary.

While no row asks for anything, each device finds the highest logit of its own piece, and all that
travels is its id and its value. Once one does, rows come together, equally many on each device,
and steering and sampling see nothing but whole rows:

    4 devices, 8 rows, V = 400      device 0           device 1             ...
    as the head makes them          rows 0-7, 0-99     rows 0-7, 100-199
    brought together                rows 0-1, 0-399    rows 2-3, 0-399

Either way, a row's token has the bits that it would have on one device.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from tpuinfer.ops.sampling import Sampled, SamplingRows, most_likely, sample, untold
from tpuinfer.ops.steering import Steering, steer, steered
from tpuinfer.programs.rows import everywhere, unpad_rows
from tpuinfer.sharding.layout import Layout, MeshAxis
from tpuinfer.sharding.rules import as_names, as_place


def choose(
    logits: jax.Array, rows: SamplingRows, positions: jax.Array, by: Steering, layout: Layout
) -> Sampled:
    """Steer and sample one token per row, as `ops.steering` and `ops.sampling` do.

    Args:
      logits: [R, V] float32, as `Decoder.cut_logits` makes them.
      positions: [R] int32, the position that each new token will take.

    Returns:
      Of all R rows, on every device.
    """
    stops, barred = by.stops, by.barred
    rows, positions, stops, barred = everywhere((rows, positions, stops, barred), layout)
    by = dataclasses.replace(by, stops=stops, barred=barred)
    asked = ((rows.temperature > 0) | (rows.logprobs >= 0) | steered(rows, by)).any()
    axis = layout.mesh_axis("vocab")
    if axis is None:
        return everywhere(
            jax.lax.cond(
                asked,
                lambda: sample(logits, rows, positions, steer(logits, rows, by)),
                lambda: untold(most_likely(logits)[0]),
            ),
            layout,
        )
    batch, pieces = layout.axes_of("batch"), layout.shards("vocab")
    both = (*batch, *layout.axes_of("vocab"))
    rows, positions, by = _filled(rows, positions, by, layout.shards("batch"), pieces)
    whole, part = PartitionSpec(), PartitionSpec(as_place(both))
    slots = None if by.slots is None else part

    def local(
        asked: jax.Array, logits: jax.Array, rows: SamplingRows, positions: jax.Array, by: Steering
    ) -> Sampled:
        by = _own(by, jax.lax.axis_index(both))
        return jax.lax.cond(
            asked,
            lambda: _by_row(logits, rows, positions, by, batch, axis),
            lambda: untold(_by_piece(logits, batch, axis)),
        )

    chosen: Sampled = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(
            whole,
            layout.spec(("batch", "vocab")),
            part,
            part,
            cast(Any, Steering)(whole, part, part, whole, slots),
        ),
        out_specs=whole,
        check_vma=False,
    )(asked, logits, rows, positions, by)
    return chosen


def _filled(
    rows: SamplingRows, positions: jax.Array, by: Steering, shards: int, pieces: int
) -> tuple[SamplingRows, jax.Array, Steering]:
    """Rows that divide over the pieces of each data shard; its last one fills up.

    2 shards of 3 rows, 2 pieces      a b c | d e f   ->   a b, c c | d e, f f
    """
    own = positions.shape[0] // shards
    if own % pieces == 0:
        return rows, positions, by
    slots = jnp.arange(shards * own, dtype=jnp.int32) if by.slots is None else by.slots
    within = np.minimum(np.arange(-(-own // pieces) * pieces), own - 1)
    at = (np.arange(shards)[:, None] * own + within).reshape(-1)
    rows, positions, stops, barred, slots = jax.tree.map(
        lambda x: x[at], (rows, positions, by.stops, by.barred, slots)
    )
    return rows, positions, Steering(by.counts, stops, barred, by.tables, slots)


def _own(by: Steering, device: jax.Array) -> Steering:
    """Of rows that are all slots in order, this device's part of what there is for all slots.

    It is taken whether a row asks for it or not: a TPU brings whatever a branch may read into VMEM
    ahead of it, the counts of all slots too.
    """
    if by.slots is not None:
        return by
    each = by.barred.shape[0]
    counts, tables = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, device * each, each), (by.counts, by.tables)
    )
    return Steering(counts, by.stops, by.barred, tables)


def _by_piece(logits: jax.Array, batch: tuple[str, ...], axis: MeshAxis) -> jax.Array:
    """The most likely tokens [R] int32 of all rows, from this device's piece of the logits."""
    own, width = logits.shape
    ids, highest = most_likely(logits)
    ids = ids + jax.lax.axis_index(axis) * width
    pairs = jnp.stack([ids, jax.lax.bitcast_convert_type(highest, jnp.int32)])
    pairs = _gather(pairs[None], batch, axis).reshape(-1, jax.lax.axis_size(axis), 2, own)
    ids, highest = pairs[:, :, 0], jax.lax.bitcast_convert_type(pairs[:, :, 1], jnp.float32)
    # Pieces lie in the order of their ids: of equal ones the first has the lowest.
    first = highest.argmax(axis=1)[:, None]
    return jnp.take_along_axis(ids, first, axis=1).reshape(-1)


def _by_row(
    logits: jax.Array,
    rows: SamplingRows,
    positions: jax.Array,
    by: Steering,
    batch: tuple[str, ...],
    axis: MeshAxis,
) -> Sampled:
    """What all rows get; this device steers and samples its part, which all but `logits` is of."""
    own, each = logits.shape[0], positions.shape[0]
    fill = each * jax.lax.axis_size(axis) - own
    logits = jnp.pad(logits, ((0, fill), (0, 0)))
    logits = jax.lax.all_to_all(logits, axis, split_axis=0, concat_axis=1, tiled=True)
    sampled = sample(logits, rows, positions, steer(logits, rows, by))
    shards = jax.lax.axis_size(batch) if batch else 1
    result: Sampled = jax.tree.map(
        lambda x: unpad_rows(_gather(x, batch, axis), shards, own), sampled
    )
    return result


def _gather(x: jax.Array, batch: tuple[str, ...], axis: MeshAxis) -> jax.Array:
    """[n, ...] of each device, one after the other: those of a data shard next to each other."""
    return jax.lax.all_gather(x, (*batch, *as_names(axis)), axis=0, tiled=True)
