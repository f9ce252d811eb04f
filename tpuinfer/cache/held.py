"""What a layer keeps, and which tokens the rows of a program call carry."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Ring:
    """One layer's cache in one class of slots.

    Attributes:
      keys, values: [B, K, L, H], float8 as bytes; `ops.attention.ring_column` says which column
        holds a position.
      key_scale, value_scale: [B, K, L] float32, what the codes of a row are multiplied by; None =
        rows are kept as they are.
      window: how many tokens a query looks back at; None = all. sinks: first tokens that stay.
      compute: the dtype that attention multiplies in; None = that of keys.
    """

    keys: jax.Array
    values: jax.Array
    window: int | None = struct.field(pytree_node=False, default=None)
    sinks: int = struct.field(pytree_node=False, default=0)
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    compute: str | None = struct.field(pytree_node=False, default=None)


Rings = tuple[Ring, ...]
"""One layer's rings: one for each class of slots."""


@struct.dataclass
class Rows:
    """Which tokens the rows of one program call carry.

    Attributes:
      slot: [R] int32, slot *within its data shard* that the row reads and writes.
      start: [R] int32, position of the row's first token.
      length: [R] int32, how many of the T tokens are real; 0 = an idle row, which never writes.
      horizon: [R] int32, the last position of which the row's ring holds everything before it; the
        sinks are seen from there by all later ones. None when no ring has sinks.
    """

    slot: jax.Array
    start: jax.Array
    length: jax.Array
    horizon: jax.Array | None = None

    def positions(self, width: int) -> jax.Array:
        """[R, T] int32 position of every token, padding included."""
        return self.start[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]


def horizons(layers: tuple[Rings, ...], slot: jax.Array, shards: int) -> jax.Array | None:
    """`Rows.horizon` of rows in these slots (numbered within their data shard).

    By StreamingLLM's rule (arXiv:2309.17453) positions are those in the cache: a query beyond the
    ring's capacity C sits at C - 1. Its distance to recent keys is right as it is; only the sinks
    must be scored from there.
    """
    if not any(ring.sinks for rings in layers for ring in rings):
        return None
    last, above = jnp.zeros_like(slot), 0
    for rings in zip(*layers, strict=True):  # those of one class, layer by layer
        for ring in rings:
            if ring.sinks:
                assert ring.window is not None
                last = jnp.where(slot >= above, ring.window + ring.sinks - 1, last)
                break
        above += rings[0].keys.shape[0] // shards
    return last
