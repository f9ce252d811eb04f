"""How large the rings are, before a byte of them exists."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

RING_AXES = ("batch", "kv_heads", "length", "head_dim")


@dataclass(frozen=True)
class RingSpec:
    """One layer's ring: keys and values, each [slots, kv_heads, length, head_dim].

    Attributes:
      length: L, columns per slot, a multiple of the block that attention reads at a time.
    """

    slots: int
    kv_heads: int
    length: int
    head_dim: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.slots, self.kv_heads, self.length, self.head_dim)

    @property
    def bytes(self) -> int:
        """Bytes of keys and values together, over all devices that hold a distinct part."""
        return 2 * math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def abstract(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype(self.dtype))


def ring_length(capacity: int, block: int) -> int:
    """Columns of a global layer's ring: `capacity` rounded up to whole blocks."""
    return -(-capacity // block) * block
