"""Write to a layer's rings and attend over them, in one shard_map per layer.

Each data shard holds its own slots and each model shard its own KV heads, so both steps are local:
no collective, and the write touches the new rows only. Where rings are cut along their length, a
device writes the columns that it has, and `cache.by_length` sums what devices have seen.

    prefill   attend over (old ring + chunk), then write the chunk
    decode    write the new row, then attend over the ring

Prefill must not write first: in a ring that is about to wrap, the chunk would overwrite keys which
its own first queries still need. Padding and idle rows never write: their index lies outside the
array and is dropped.

A layer has one ring for each class of slots. The rows of a decode step are cut by class, each part
attends over its own ring. Rows that name their slot (prefill, a narrow decode) go through the rings
one after the other; one that is not theirs is wholly masked, which changes nothing.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tpuinfer.cache.by_kernel import Kernel, joined, kernel_for
from tpuinfer.cache.by_length import Cut, cut_of
from tpuinfer.cache.held import Ring, Rings, Rows
from tpuinfer.cache.spec import RING_AXES, SCALE_AXES
from tpuinfer.cache.write import put
from tpuinfer.ops import attention
from tpuinfer.platform import Attention
from tpuinfer.quant import rows as rows_of
from tpuinfer.quant.rows import Rounded, round_rows
from tpuinfer.sharding.layout import Layout

_HEADS = ("batch", None, "heads", "head_dim")
_KV = ("batch", None, "kv_heads", "head_dim")


class Asked(NamedTuple):
    """What a layer puts to its rings.

    Attributes:
      q: [R, T, N, H]. k, v: [R, T, K, H], rotated.
      sink_q: q as the sinks see it, rotated to `rows.horizon` at most; None = as q.
      sink_logits: [N] learned scores that take part in every softmax; None = there are none.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    sink_q: jax.Array | None = None
    sink_logits: jax.Array | None = None


@dataclass(frozen=True)
class Scores:
    """How a layer scores its keys: `scale` times the product, bent to stay within +-`cap`.

    None = 1 / sqrt(H), and no cap.
    """

    scale: float | None = None
    cap: float | None = None


@dataclass(frozen=True)
class RingAttention:
    """How a program attends: what is the same for all its layers.

    Attributes:
      block: ring columns read at a time.
      mode: "prefill"; "decode", where the rows are all slots in order; or "narrow", a decode of
        rows that name their slots.
      by: what reads the rings.
    """

    layout: Layout
    block: int
    mode: Literal["prefill", "decode", "narrow"]
    by: Attention = "reference"

    def __call__(
        self, asked: Asked, rings: Rings, rows: Rows, scores: Scores = Scores()
    ) -> tuple[jax.Array, Rings]:
        """Attend and write.

        Returns:
          [R, T, N, H] in q's dtype, and the rings with the new rows in them.
        """
        spec = self.layout.spec
        row = PartitionSpec(self.layout.mesh_axis("batch"))
        where = tuple(_specs(ring, self.layout) for ring in rings)
        places: Any = map(spec, (_HEADS, _KV, _KV, _HEADS, ("heads",)))
        # A window shorter than a block makes a ring, and so a block, of its own length.
        parts = self.layout.shards("length")
        block = math.gcd(self.block, *(ring.keys.shape[2] // parts for ring in rings))
        own = dataclasses.replace(self, block=block)
        local = jax.shard_map(
            functools.partial(own._decode if self.mode == "decode" else own._by_slot, scores),
            mesh=self.layout.mesh,
            in_specs=(Asked(*places), where, row),
            out_specs=(spec(_HEADS), where),
            check_vma=False,
        )
        out: tuple[jax.Array, Rings] = local(asked, rings, rows)
        return out

    @functools.cached_property
    def _cut(self) -> Cut | None:
        return cut_of(self.layout)

    def _kernel(self, rings: Rings) -> Kernel | None:
        return kernel_for(rings, self.block, self.by, cut=self._cut is not None)

    def _begin(self, q: attention.Queries, asked: Asked) -> attention.Softmax:
        return attention.begin(q.main, None if self._cut else asked.sink_logits)

    def _end(self, seen: attention.Softmax, asked: Asked) -> jax.Array:
        if self._cut:
            return self._cut.finish(seen, asked.sink_logits, asked.q.dtype)
        return _finish(attention.finish(seen), asked.q)

    def _by_slot(
        self, scores: Scores, asked: Asked, rings: Rings, rows: Rows
    ) -> tuple[jax.Array, Rings]:
        q, k, v = _lined_up(asked, rings[0], scores, rows, self._cut)
        parts = _by_class(rings, rows)
        if kernel := self._kernel(rings):
            return self._by_slot_kernel(kernel, asked, (q, k, v), rings, parts)
        narrow = self.mode == "narrow"
        dealt = self._cut.dealt if self._cut else None
        write = functools.partial(put, dealt=dealt)
        if narrow:
            rings = tuple(write(ring, k, v, part) for ring, part in zip(rings, parts, strict=True))
        seen = self._begin(q, asked)
        for ring, part in zip(rings, parts, strict=True):
            ends = part.start + part.length if narrow else part.start
            seen = attention.attend_ring(
                seen,
                q,
                ring,
                slots=part.slot,
                newest=jnp.where(part.length > 0, ends - 1, -1),
                block=self.block,
                dealt=dealt,
            )
        if not narrow:
            seen = _attend_own_chunk(seen, q, (k, v), rings, parts, self._cut)
            parts = [
                dataclasses.replace(part, slot=_after(seen.total, part.slot)) for part in parts
            ]
            rings = tuple(write(ring, k, v, part) for ring, part in zip(rings, parts, strict=True))
        return self._end(seen, asked), rings

    def _by_slot_kernel(
        self,
        kernel: Kernel,
        asked: Asked,
        own: tuple[attention.Queries, Rounded, Rounded],
        rings: Rings,
        parts: list[Rows],
    ) -> tuple[jax.Array, Rings]:
        """The same by a kernel: each class's rows at once, the others' cost nothing."""
        q, k, v = own
        outs, written = [], []
        for ring, part in zip(rings, parts, strict=True):
            if self.mode == "narrow":
                ring = put(ring, k, v, part, kernel)
                slots = jnp.clip(part.slot, 0, ring.keys.shape[0] - 1)
                outs.append(kernel.decode(q, ring, _newest(part), asked.sink_logits, slots))
            else:
                where = (part.slot, part.length)
                outs.append(kernel.prefill(q, ring, (k, v), where, asked.sink_logits))
                read = jnp.square(outs[-1][:1, :1, :1, :1, :1])
                part = dataclasses.replace(part, slot=_after(read, part.slot))
                ring = put(ring, k, v, part, kernel)
            written.append(ring)
        out = joined(outs, [part.length for part in parts])
        return _finish(out, asked.q), tuple(written)

    def _decode(
        self, scores: Scores, asked: Asked, rings: Rings, rows: Rows
    ) -> tuple[jax.Array, Rings]:
        outs, written, first = [], [], 0
        kernel = self._kernel(rings)
        for ring in rings:
            own = slice(first, first + ring.keys.shape[0])
            first = own.stop
            part, mine = jax.tree.map(
                lambda array, own=own: array[own], (rows, asked._replace(sink_logits=None))
            )
            part = dataclasses.replace(part, slot=part.slot - own.start)
            mine = mine._replace(sink_logits=asked.sink_logits)
            out, ring = self._decode_class(kernel, scores, mine, ring, part)
            outs.append(out)
            written.append(ring)
        if padding := asked.q.shape[0] - first:  # rows added to reach the platform's minimum
            outs.append(jnp.zeros((padding, *asked.q.shape[1:]), asked.q.dtype))
        return jnp.concatenate(outs), tuple(written)

    def _decode_class(
        self, kernel: Kernel | None, scores: Scores, asked: Asked, ring: Ring, rows: Rows
    ) -> tuple[jax.Array, Ring]:
        q, k, v = _lined_up(asked, ring, scores, rows, self._cut)
        dealt = self._cut.dealt if self._cut else None
        ring = put(ring, k, v, rows, kernel, dealt)
        if kernel:
            return _finish(kernel.decode(q, ring, _newest(rows), asked.sink_logits), asked.q), ring
        seen = attention.attend_ring(
            self._begin(q, asked),
            q,
            ring,
            slots=None,
            newest=_newest(rows),
            block=self.block,
            dealt=dealt,
        )
        return self._end(seen, asked), ring


def _specs(ring: Ring, layout: Layout) -> Any:
    """Where a ring lies, part by part."""
    whole, scale = layout.spec(RING_AXES), layout.spec(SCALE_AXES)
    scales = (None, None) if ring.key_scale is None else (scale, scale)
    places: Any = (whole, whole, ring.window, ring.sinks, *scales, ring.compute)
    return Ring(*places)


def _lined_up(
    asked: Asked, ring: Ring, scores: Scores, rows: Rows, cut: Cut | None
) -> tuple[attention.Queries, Rounded, Rounded]:
    """Queries as attention takes them, and k, v as the ring keeps them: [R, K, T, H]."""
    kept = rows_of.kept(ring.keys.dtype)
    k, v = (round_rows(jnp.swapaxes(array, 1, 2), kept) for array in (asked.k, asked.v))
    dtype = jnp.dtype(ring.compute) if ring.compute else kept
    if cut:
        sink_q = None if asked.sink_q is None else cut.gathered(asked.sink_q)
        asked = asked._replace(q=cut.gathered(asked.q), sink_q=sink_q)
    main, sinks = (
        None if q is None else attention.split_heads(q, k.values.shape[1], dtype, scores.scale)
        for q in (asked.q, asked.sink_q)
    )
    assert main is not None
    positions = rows.positions(asked.q.shape[1])
    return attention.Queries(main, sinks, positions, scores.cap), k, v


def _newest(rows: Rows) -> jax.Array:
    """[R] the last position of each row that is in its ring once the row is; -1 = an idle row."""
    return jnp.where(rows.length > 0, rows.start + rows.length - 1, -1)


def _finish(out: jax.Array, q: jax.Array) -> jax.Array:
    """[R, T, K, G, H] float32 as the layer takes it: as q."""
    return out.reshape(q.shape).astype(q.dtype)


def _by_class(rings: Rings, rows: Rows) -> list[Rows]:
    """The rows as each class sees them: slots numbered within it, other classes' rows idle."""
    parts, first = [], 0
    for ring in rings:
        slot = rows.slot - first
        first += ring.keys.shape[0]
        mine = (slot >= 0) & (slot < ring.keys.shape[0])
        parts.append(dataclasses.replace(rows, slot=slot, length=jnp.where(mine, rows.length, 0)))
    return parts


def _attend_own_chunk(
    seen: attention.Softmax,
    q: attention.Queries,
    own: tuple[Rounded, Rounded],
    rings: Rings,
    parts: list[Rows],
    cut: Cut | None,
) -> attention.Softmax:
    """Attend within the chunk, once for each window that the classes have."""
    k, v = own
    chunk, first = attention.Columns(k.values, v.values, k.scale, v.scale), None
    views: dict[tuple[int, int] | None, list[jax.Array]] = {}
    for ring, part in zip(rings, parts, strict=True):
        sees_all = ring.window is None or ring.window >= chunk.k.shape[2]
        view = None if sees_all else (ring.window or 0, ring.sinks)
        views.setdefault(view, []).append(part.length)
    if cut:
        chunk, first = cut.share(chunk)
    for view, lengths in views.items():
        length = sum(lengths[1:], lengths[0])
        if view is None:
            seen = attention.attend_chunk(seen, q.main, chunk, length, cap=q.cap, first=first)
        else:
            window, sinks = view
            pinned = jnp.maximum(sinks - parts[0].start, 0)
            seen = attention.attend_chunk(
                seen, q.main, chunk, length, window=window, sinks=pinned, cap=q.cap, first=first
            )
    return seen


def _after(read: jax.Array, slot: jax.Array) -> jax.Array:
    """`slot`, unchanged, but not known before `read` is.

    The write must wait for the last read of the old ring, or the compiler copies the ring to have
    both. An optimisation barrier would say so, but is gone before buffers are assigned; a sum of
    exponentials, or a square, is never negative, which the compiler does not know.
    """
    return jnp.where(read.min() < 0, slot + 1, slot)
