"""Write to a layer's ring and attend over it, in one shard_map per layer.

Each data shard holds its own slots and each model shard its own KV heads, so both steps are local:
no collective, and the write touches the new rows only.

    prefill   attend over (old ring + chunk), then write the chunk
    decode    write the new row, then attend over the ring

Prefill must not write first: in a ring that is about to wrap, the chunk would overwrite keys which
its own first queries still need. Padding and idle rows never write: their index lies outside the
array and is dropped.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from tpuinfer.cache.spec import RING_AXES
from tpuinfer.ops import attention
from tpuinfer.sharding.rules import Layout

_HEADS = ("batch", None, "heads", "head_dim")
_KV = ("batch", None, "kv_heads", "head_dim")


@struct.dataclass
class Ring:
    """One layer's cache: keys and values, each [B, K, L, H]; column p mod L holds position p."""

    keys: jax.Array
    values: jax.Array


@struct.dataclass
class Rows:
    """Which tokens the rows of one program call carry.

    Attributes:
      slot: [R] int32, slot *within its data shard* that the row reads and writes.
      start: [R] int32, position of the row's first token.
      length: [R] int32, how many of the T tokens are real; 0 = an idle row, which never writes.
    """

    slot: jax.Array
    start: jax.Array
    length: jax.Array

    def positions(self, width: int) -> jax.Array:
        """[R, T] int32 position of every token, padding included."""
        return self.start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]


@dataclass(frozen=True)
class RingAttention:
    """How a program attends: what is the same for all its layers.

    Attributes:
      block: ring columns read at a time.
      identity: the rows are the slots in order (decode): no gather, and write before attending.
    """

    layout: Layout
    block: int
    identity: bool

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, ring: Ring, rows: Rows
    ) -> tuple[jax.Array, Ring]:
        """Attend and write.

        Args:
          q: [R, T, N, H]. k, v: [R, T, K, H], rotated.

        Returns:
          [R, T, N, H] in q's dtype, and the ring with the new rows in it.
        """
        spec = self.layout.spec
        row = PartitionSpec(self.layout.mesh_axis("batch"))
        local = jax.shard_map(
            self._decode if self.identity else self._prefill,
            mesh=self.layout.mesh,
            in_specs=(spec(_HEADS), spec(_KV), spec(_KV), spec(RING_AXES), row),
            out_specs=(spec(_HEADS), spec(RING_AXES)),
            check_vma=False,
        )
        out: tuple[jax.Array, Ring] = local(q, k, v, ring, rows)
        return out

    def _prefill(
        self, q: jax.Array, k: jax.Array, v: jax.Array, ring: Ring, rows: Rows
    ) -> tuple[jax.Array, Ring]:
        dtype = ring.keys.dtype
        grouped = attention.split_heads(q, k.shape[2], dtype)
        seen = attention.attend_ring(
            attention.begin(grouped),
            grouped,
            (ring.keys, ring.values),
            slots=rows.slot,
            newest=jnp.where(rows.length > 0, rows.start - 1, -1),
            queries=rows.positions(q.shape[1]),
            block=self.block,
        )
        k, v = (jnp.swapaxes(array, 1, 2).astype(dtype) for array in (k, v))
        seen = attention.attend_chunk(seen, grouped, k, v, rows.length)
        rows = dataclasses.replace(rows, slot=_after(seen.total, rows.slot))
        out = attention.finish(seen).reshape(q.shape).astype(q.dtype)
        return out, write(ring, k, v, rows)

    def _decode(
        self, q: jax.Array, k: jax.Array, v: jax.Array, ring: Ring, rows: Rows
    ) -> tuple[jax.Array, Ring]:
        dtype, slots = ring.keys.dtype, ring.keys.shape[0]
        padding = q.shape[0] - slots  # rows added to reach the platform's minimum
        used = jax.tree.map(lambda array: array[:slots], rows)
        k, v = (jnp.swapaxes(array[:slots], 1, 2).astype(dtype) for array in (k, v))
        ring = write(ring, k, v, used)
        grouped = attention.split_heads(q[:slots], k.shape[1], dtype)
        seen = attention.attend_ring(
            attention.begin(grouped),
            grouped,
            (ring.keys, ring.values),
            slots=None,
            newest=jnp.where(used.length > 0, used.start + used.length - 1, -1),
            queries=used.positions(q.shape[1]),
            block=self.block,
        )
        out = attention.finish(seen).reshape(slots, *q.shape[1:]).astype(q.dtype)
        return jnp.pad(out, ((0, padding), (0, 0), (0, 0), (0, 0))), ring


def _after(read: jax.Array, slot: jax.Array) -> jax.Array:
    """`slot`, unchanged, but not known before `read` is.

    The write must wait for the last read of the old ring, or the compiler copies the ring to have
    both. An optimisation barrier would say so, but is gone before buffers are assigned; a sum of
    exponentials is never negative, which the compiler does not know.
    """
    return jnp.where(read.min() < 0, slot + 1, slot)


def write(ring: Ring, k: jax.Array, v: jax.Array, rows: Rows) -> Ring:
    """Put new keys and values into their columns; local shapes, call it inside shard_map.

    Args:
      k, v: [R, K, T, H]. rows: of R rows.

    The ring is viewed as [B * K * L, H], so that one scatter touches the new rows only:

        B = 2, K = 1, L = 4; slot 1 holds positions 0..2, a chunk of 2 (and 1 of padding) at start 3

        column        0  1  2  3 | 0  1  2  3          flat index of position p in slot 1:
        before        .  .  .  . | 0  1  2  .             (1 * K + head) * L + p mod L
        after         .  .  .  . | 4  1  2  3          padding: index B * K * L, dropped
    """
    slots, kv_heads, length, head_dim = ring.keys.shape
    width = k.shape[2]
    positions = rows.positions(width)
    real = jnp.arange(width, dtype=jnp.int32)[None, :] < rows.length[:, None]
    heads = jnp.arange(kv_heads, dtype=jnp.int32)
    base = (rows.slot[:, None] * kv_heads + heads[None, :]) * length
    index = base[:, :, None] + jnp.mod(positions, length)[:, None, :]
    outside = slots * kv_heads * length
    index = jnp.where(real[:, None, :], index, outside).reshape(-1)

    def put(array: jax.Array, new: jax.Array) -> jax.Array:
        flat = array.reshape(-1, head_dim).at[index].set(new.reshape(-1, head_dim), mode="drop")
        return flat.reshape(array.shape)

    return Ring(put(ring.keys, k), put(ring.values, v))
