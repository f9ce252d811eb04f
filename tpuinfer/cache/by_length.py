"""Attention over rings that are cut along their length: each device sees its columns, then all do.

A device attends over its own columns with all the query heads that its KV heads serve, and, in
prefill, over its share of the chunk. What it has seen, the sums of its softmax, goes to the devices
that keep the heads in question, and is summed there in the order of the devices.

    2 devices, queries of 4 heads        device 0           device 1
    sees                                 columns 0 2 4 ..   columns 1 3 5 ..     of heads 0 1 2 3
    keeps                                heads 0 1          heads 2 3            of all columns
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpuinfer.ops import attention
from tpuinfer.sharding.layout import Layout


@dataclass(frozen=True)
class Cut:
    """How rings are cut along their length; what it does, it does inside shard_map.

    Attributes:
      axes: the mesh axes. of: how many devices they are.
      heads: whether query heads are cut over these axes, too; otherwise every device keeps all.
    """

    axes: tuple[str, ...]
    of: int
    heads: bool

    @property
    def dealt(self) -> attention.Dealt:
        """Which columns this device has."""
        return attention.Dealt(jax.lax.axis_index(self.axes), self.of)

    def gathered(self, q: jax.Array) -> jax.Array:
        """[R, T, N, H] of all the heads that this device's KV heads serve."""
        return jax.lax.all_gather(q, self.axes, axis=2, tiled=True) if self.heads else q

    def share(self, chunk: attention.Columns) -> tuple[attention.Columns, jax.Array]:
        """The part of a chunk that this device attends to, and which of its tokens is the first."""
        width = -(-chunk.k.shape[2] // self.of)
        first = jax.lax.axis_index(self.axes) * width

        def part(array: jax.Array | None) -> jax.Array | None:
            if array is None:
                return None
            fill = [(0, 0)] * array.ndim
            fill[2] = (0, width * self.of - array.shape[2])
            return jax.lax.dynamic_slice_in_dim(jnp.pad(array, fill), first, width, axis=2)

        k, v, k_scale, v_scale = map(part, chunk)
        assert k is not None
        assert v is not None
        return attention.Columns(k, v, k_scale, v_scale), first

    def finish(
        self, seen: attention.Softmax, sink_logits: jax.Array | None, dtype: jnp.dtype
    ) -> jax.Array:
        """What all devices have seen, as `ops.attention.finish` says: [R, T, N, H] in `dtype`.

        Args:
          seen: by this device, begun without sink logits.
          sink_logits: [N] as in `ops.attention.begin`, of the heads that are returned.
        """
        rows, kv_heads, group, width, head_dim = seen.values.shape
        heads = kv_heads * group
        own = -(-heads // self.of)
        thin = self._to_keepers(jnp.concatenate((seen.highest, seen.total), axis=-1), own)
        parts = attention.Softmax(thin[..., :1], thin[..., 1:], self._to_keepers(seen.values, own))
        if sink_logits is not None and not self.heads:
            filled = jnp.pad(sink_logits, (0, own * self.of - heads))
            first = jax.lax.axis_index(self.axes) * own
            sink_logits = jax.lax.dynamic_slice_in_dim(filled, first, own)
        begun = attention.begin(parts.values[0], sink_logits)
        whole = attention.finish(attention.merge(begun, parts))
        out = whole.reshape(rows, width, own, head_dim).astype(dtype)
        if self.heads:
            return out
        return jax.lax.all_gather(out, self.axes, axis=2, tiled=True)[:, :, :heads]

    def _to_keepers(self, sums: jax.Array, own: int) -> jax.Array:
        """[R, K, G, T, X] of all heads -> [P, R, own, 1, T, X] of those this device keeps."""
        rows, kv_heads, group, *rest = sums.shape
        flat = sums.reshape(rows, kv_heads * group, *rest)
        if fill := own * self.of - flat.shape[1]:
            flat = jnp.pad(flat, ((0, 0), (0, fill), (0, 0), (0, 0)))
        sent = jax.lax.all_to_all(flat, self.axes, split_axis=1, concat_axis=0, tiled=True)
        return sent.reshape(self.of, rows, own, 1, *rest)


def cut_of(layout: Layout) -> Cut | None:
    """How a layout cuts rings along their length; None = it does not."""
    axes = layout.axes_of("length")
    if not axes:
        return None
    heads = layout.axes_of("heads") != layout.axes_of("kv_heads")
    return Cut(axes, layout.shards("length"), heads)
