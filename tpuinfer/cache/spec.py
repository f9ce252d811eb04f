"""How large the rings are, before a byte of them exists."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpuinfer.quant import rows

RING_AXES = ("batch", "kv_heads", "length", "head_dim")
SCALE_AXES = RING_AXES[:-1]

_TILE = 128


@dataclass(frozen=True)
class RingSpec:
    """One layer's ring in one class of slots: keys and values, [slots, kv_heads, length, head_dim].

    Attributes:
      slots: over all data shards.
      length: L, columns per slot, over all devices that have some of them; what each has is a
        multiple of the block that attention reads at a time.
      dtype: what is kept: of codes (int8, float8_e4m3fn) every row has a float32 scale beside it.
      compute: the dtype that attention multiplies in; None = what is kept.
      window: how many tokens a query looks back at, itself included; None = all there are.
      sinks: first tokens that stay in view beside the window; their columns are never reused.
    """

    slots: int
    kv_heads: int
    length: int
    head_dim: int
    dtype: str
    window: int | None = None
    sinks: int = 0
    compute: str | None = None

    def __post_init__(self) -> None:
        assert self.window is None or self.window + self.sinks <= self.length, self
        assert self.window is not None or self.sinks == 0, self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.slots, self.kv_heads, self.length, self.head_dim)

    @property
    def bytes(self) -> int:
        """Bytes of keys and values together, over all devices that hold a distinct part."""
        scale = 4 if self.is_codes else 0
        row = self.head_dim * jnp.dtype(self.dtype).itemsize + scale
        return 2 * math.prod(self.shape[:-1]) * row

    @property
    def is_codes(self) -> bool:
        """Whether rows are kept as codes with a scale each."""
        return rows.is_codes(self.dtype)

    def abstract(self) -> jax.ShapeDtypeStruct:
        """Keys, or values, as an array: float8 lies there as bytes (see `quant.rows.stored`)."""
        return jax.ShapeDtypeStruct(self.shape, rows.stored(self.dtype))


@dataclass(frozen=True)
class View:
    """What a layer's queries see in one class of slots, and how many columns that takes.

    Attributes:
      columns: the fewest a ring must have. window, sinks: as in `RingSpec`.
    """

    columns: int
    window: int | None = None
    sinks: int = 0


def view(capacity: int, window: int | None, *, rolls: bool, sinks: int, per_step: int = 1) -> View:
    """What a layer keeps of a request.

    Args:
      capacity: tokens that a slot of this class holds.
      window: the layer's own (a sliding-window layer), or None for a global one.
      rolls: requests go on past their capacity; a global layer then keeps `sinks` first tokens and
        the newest that fit beside them.
      per_step: tokens a decode step may write beyond the one it keeps (speculation).

        capacity 16, layer                 stop                  roll, 2 sinks
        global                             16, sees all          16, sees 2 sinks + newest 14
        window 6                           6, sees newest 6      6, sees newest 6
        window 100                         16, sees all          16, sees 2 sinks + newest 14
    """
    if window is not None and window < capacity:
        return View(window + per_step - 1, window)
    if not rolls:
        return View(capacity)
    return View(capacity + per_step - 1, capacity - sinks, sinks)


def ring_length(columns: int, block: int, parts: int = 1) -> int:
    """Columns of a ring: as many as needed, rounded up to whole blocks.

    A window shorter than a block makes a block of its own, in whole tiles of 128; so does a part.

    Args:
      parts: into how many equal ones rings are cut along their length.

    >>> ring_length(1025, 512), ring_length(130, 512), ring_length(1, 16)
    (1536, 256, 16)
    >>> ring_length(2048, 512, 8), ring_length(1024, 512, 8), ring_length(1000, 512, 8)
    (2048, 1024, 1024)
    """
    own = -(-columns // parts)
    unit = block if own >= block else min(block, _TILE)
    return -(-own // unit) * unit * parts
