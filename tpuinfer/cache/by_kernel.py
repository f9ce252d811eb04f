"""Attention over a layer's rings by the kernels of `ops.kernels`, where a layer can have them."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tpuinfer.ops import attention
from tpuinfer.ops.kernels import ring as kernels
from tpuinfer.ops.kernels.write import takes, write_rows
from tpuinfer.platform import Attention
from tpuinfer.quant.rows import Rounded, as_stored

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernel:
    """How a layer's rings are read: `block` columns a visit; `interpret`: by XLA, for tests."""

    block: int
    interpret: bool

    def decode(
        self,
        queries: attention.Queries,
        ring: attention.Ring,
        newest: jax.Array,
        sink_logits: jax.Array | None,
        slots: jax.Array | None = None,
    ) -> jax.Array:
        """`ops.kernels.ring.decode_attention`."""
        return kernels.decode_attention(
            queries,
            ring,
            newest,
            sink_logits,
            block=self.block,
            slots=slots,
            interpret=self.interpret,
        )

    def prefill(
        self,
        queries: attention.Queries,
        ring: attention.Ring,
        own: tuple[Rounded, Rounded],
        where: tuple[jax.Array, jax.Array],
        sink_logits: jax.Array | None,
    ) -> jax.Array:
        """`ops.kernels.ring.prefill_attention`.

        Args:
          own: keys and values of the chunk. where: [R] slot and [R] length of each row.
        """
        k, v = own
        return kernels.prefill_attention(
            queries,
            ring,
            attention.Columns(k.values, v.values, k.scale, v.scale),
            *where,
            sink_logits,
            block=self.block,
            interpret=self.interpret,
        )

    def writes(self, ring: attention.Ring, width: int) -> bool:
        """Whether `width` new rows go into a slot's ring by a kernel: XLA's scatter may copy it."""
        return kernels.turned(ring.keys) or (width > 1 and takes(ring.keys, width))

    def write(
        self,
        ring: attention.Ring,
        own: tuple[Rounded, Rounded],
        where: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """`ops.kernels.write.write_rows`; `where` is slot, start and length of each row."""
        k, v = (as_stored(one.values) for one in own)
        return write_rows(
            (ring.keys, ring.values),
            (k, v),
            *where,
            sinks=ring.sinks,
            turned=kernels.turned(ring.keys),
            interpret=self.interpret,
        )


def kernel_for(
    rings: Sequence[attention.Ring], block: int, asked: Attention, *, cut: bool = False
) -> Kernel | None:
    """How kernels read these rings, of all classes; None = `ops.attention` does.

    Where they cannot, though they were asked for, the log says why, once.

    Args:
      cut: the rings are cut along their length, which no kernel knows.
    """
    if asked == "reference":
        return None
    if cut:
        _tell("rings cut along their length")
        return None
    if reason := kernels.why_not(rings, block):
        _tell(reason)
        return None
    return Kernel(kernels.columns_of(rings, block), asked == "interpret")


def joined(outs: Sequence[jax.Array], lengths: Sequence[jax.Array]) -> jax.Array:
    """The rows of all classes, [R, ...], of which each has its own and zeros for the others."""
    out = outs[0]
    for other, length in zip(outs[1:], lengths[1:], strict=True):
        own = (length > 0).reshape(-1, *(1,) * (other.ndim - 1))
        out = jnp.where(own, other, out)
    return out


@functools.cache
def _tell(reason: str) -> None:
    _log.info("attention: no Pallas kernel for %s; XLA's own is used", reason)
