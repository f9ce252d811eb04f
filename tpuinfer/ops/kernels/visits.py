"""Which blocks of columns each row's queries are put to: the work list of the attention kernel.

A row visits only the blocks that hold something it may see, so a short slot costs nothing of what
a long neighbour needs, and an idle one costs nothing at all. The list is one for all rows, in their
order; a row's own part of it depends on its own positions only.

    L = 16, blocks of 4, three rows          row 0 at 2    row 1 idle    row 2 at 9
    list    (0, block 0)  (2, block 0)  (2, block 1)  (2, block 2)

Windows lie on a ring that may have wrapped: the blocks from the oldest column in view round to the
newest one's.

    L = 16, window 6, at 17: columns 12 13 14 15 | 0 1        blocks 3, 0

Letters: R rows, P parts into which each row's queries are cut, W entries.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Columns:
    """How the columns of rings are laid out and read.

    Attributes:
      length: L. block: columns of one visit, a divisor of L.
      window, sinks: as the ring has them.
    """

    length: int
    block: int
    window: int | None = None
    sinks: int = 0

    @property
    def blocks(self) -> int:
        return self.length // self.block


class Visits(NamedTuple):
    """The work list; entries beyond `total` are never reached.

    Attributes:
      who: [W + 1] int32, row * P + part; -1 beyond the last.
      ring: [W] int32, slot * blocks + block of the ring to read; of a visit to the chunk that of
        the visit before, so that nothing is read.
      own: [W] int32, block of the row's own chunk; -1 = the visit is to the ring.
      total: [] int32, at least 1: a grid of no steps at all is not worth the doubt. The visit of
        nobody goes to row 0, which is idle then.
    """

    who: jax.Array
    ring: jax.Array
    own: jax.Array
    total: jax.Array


def held_position(columns: Columns, newest: Any, column: Any) -> Any:
    """Which position a column holds, as `ops.attention.ring_positions` says; below 0 = none.

    Without a division of `column`: kernels have none for vectors.
    """
    turning = columns.length - columns.sinks
    last = jax.lax.rem(jnp.maximum(newest - columns.sinks, 0), turning) + columns.sinks
    last = jnp.where(newest < columns.sinks, newest, last)  # the newest position's column
    position = newest - last + column - jnp.where(column > last, turning, 0)
    if not columns.sinks:
        return position
    pinned = jnp.where(column <= newest, column, -1)
    turned = jnp.where(position >= columns.sinks, position, -1)
    return jnp.where(column < columns.sinks, pinned, turned)


def ring_span(
    columns: Columns, newest: jax.Array, lowest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The blocks of a ring that hold what queries from position `lowest` on may see.

    Args:
      newest: int32, the last position written; -1 = none. lowest: of the same shape.

    Returns:
      The first block, and how many from there on, round the ring.
    """
    length, block = columns.length, columns.block
    full = (jnp.minimum(newest, length - 1) + block) // block
    if columns.window is None or columns.sinks:  # then a ring has little that is out of view
        return jnp.zeros_like(newest), full
    oldest = jnp.maximum(jnp.maximum(lowest - columns.window, newest - length) + 1, 0)
    begin = jnp.mod(oldest, length)
    held = jnp.maximum(newest - oldest + 1, 0)
    count = jnp.where(held > 0, (begin % block + held + block - 1) // block, 0)
    return begin // block, jnp.minimum(count, columns.blocks)


def own_span(
    columns: Columns, start: jax.Array, lowest: jax.Array, beyond: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """The same of a row's own chunk, whose first token is at position `start`.

    Args:
      beyond: the first position that no query of the part may see.
      block: columns of the chunk in one visit.
    """
    count = (jnp.maximum(beyond - start, 0) + block - 1) // block
    if columns.window is None or columns.sinks:
        return jnp.zeros_like(count), count
    first = jnp.maximum(lowest - columns.window + 1 - start, 0) // block
    return first, jnp.maximum(count - first, 0)


def list_visits(
    slots: jax.Array,
    columns: Columns,
    ring: tuple[jax.Array, jax.Array],
    own: tuple[jax.Array, jax.Array] | None = None,
    *,
    most: int,
) -> Visits:
    """Every row's blocks, one after the other.

    Args:
      slots: [R] int32, which slot each row reads.
      ring, own: [R, P] int32 first block and count, of the ring and of the chunk; None = no chunk.
      most: visits that a part of a row may have.
    """
    first, count = ring
    parts = count.shape[1]
    both = count if own is None else count + own[1]
    ends = jnp.cumsum(both.reshape(-1))
    begins = ends - both.reshape(-1)
    at = jnp.arange(both.size * most, dtype=jnp.int32)
    mine = (at[:, None] >= begins[None, :]) & (at[:, None] < ends[None, :])

    def pick(array: jax.Array) -> jax.Array:
        """What the part of each visit has: a sum over parts, as gathers are slow."""
        return jnp.where(mine, array.reshape(1, -1), 0).sum(axis=1, dtype=jnp.int32)

    base = jnp.repeat(slots * columns.blocks, parts)
    step = at - pick(begins)
    in_ring = step < pick(count)
    place = pick(base) + (pick(first) + step) % columns.blocks
    who = jnp.where(at < ends[-1], pick(jnp.arange(both.size, dtype=jnp.int32)), -1)
    own_at = jnp.full(at.shape, -1, jnp.int32)
    if own is not None:
        final = base + ((first + count - 1) % columns.blocks).reshape(-1)
        index = jnp.arange(both.size, dtype=jnp.int32)
        rests = final[jax.lax.cummax(jnp.where(count.reshape(-1) > 0, index, 0))]
        place = jnp.where(in_ring, place, pick(rests))
        own_at = jnp.where(in_ring, -1, pick(own[0]) + step - pick(count))
    return Visits(jnp.append(who, -1), place, own_at, jnp.maximum(ends[-1], 1))
