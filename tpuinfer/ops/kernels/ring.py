"""Attention over rings as one Pallas kernel for TPUs: `ops.attention`, block by block of VMEM.

    grid      (part of the KV heads, visit); `visits` lists which block each visit reads
    a visit   scores [M, S] of a row's queries, all heads of a group together, M = T * G, and a
              block of S columns; a running softmax in VMEM from a row's first visit to its last

Decode reads what the rings hold once. Prefill reads a row's ring once for each part of its queries,
then the chunk itself, as the ring will keep it. A row's bits depend on its own positions only: its
visits come in the order of its blocks, whatever its slot and its neighbours.

Letters: as in `ops.attention`; P parts of the queries, M rows of one product, S columns of a visit.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpuinfer.ops import attention
from tpuinfer.ops.kernels.body import LANES, Form, Operands, Scalars, Scratch, attend
from tpuinfer.ops.kernels.visits import Columns, Visits, list_visits, own_span, ring_span

_STEP_BYTES = 512 << 10
"""Keys and values that a visit should read: at 819 GB/s they take longer than the visit's own
overhead, some 0.35 us."""
_MOST_BYTES = 2 << 20
"""The most of them: VMEM holds two visits' at a time."""
_MOST_ROWS = 512
"""Rows of one product in a prefill."""


def decode_attention(
    queries: attention.Queries,
    ring: attention.Ring,
    newest: jax.Array,
    sink_logits: jax.Array | None = None,
    *,
    block: int,
    slots: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `attend_ring` and `finish` give: [R, T, K, G, H] float32, zeros for idle rows.

    Args:
      newest: [R] int32, the last position written to each row's ring; -1 for an idle row.
      sink_logits: [N] as in `ops.attention.begin`.
      block: columns of a visit, from `columns_of`.
      slots: [R] int32, which slot each row reads; None = row r reads slot r.
    """
    rows, kv_heads, group, width, head_dim = queries.main.shape
    columns = Columns(ring.keys.shape[2], block, ring.window, ring.sinks)
    heads = _heads_of(kv_heads, block, head_dim, ring)
    form = Form(columns, heads, group, width, 1, 0, queries.cap, turned(ring.keys))
    slots = jnp.arange(rows, dtype=jnp.int32) if slots is None else slots
    start = queries.positions[:, 0]
    span = ring_span(columns, newest[:, None], start[:, None])
    visits = list_visits(slots, columns, span, most=columns.blocks)
    positions = (newest, start, start)
    out = _call(form, queries, ring, None, sink_logits, visits, positions, interpret)
    return _undo(form, jnp.where((newest >= 0)[:, None, None, None], out, 0.0), width)


def prefill_attention(
    queries: attention.Queries,
    ring: attention.Ring,
    chunk: attention.Columns,
    slots: jax.Array,
    length: jax.Array,
    sink_logits: jax.Array | None = None,
    *,
    block: int,
    interpret: bool = False,
) -> jax.Array:
    """A chunk's attention to what its slot's ring holds before it, and to itself.

    Args:
      chunk: [R, K, T, H], as the ring will keep it.
      slots: [R] int32, which slot each row reads (clamped). length: [R] int32, how many of the T
        tokens are real; 0 = an idle row, of which nothing is read.
      block, sink_logits: as in `decode_attention`.

    Returns:
      [R, T, K, G, H] float32. Padding has finite values of no meaning.
    """
    _, _, group, width, _ = queries.main.shape
    columns = Columns(ring.keys.shape[2], block, ring.window, ring.sinks)
    tokens, own = _part(width, max(1, _MOST_ROWS // group)), _part(width, 256)
    form = Form(columns, 1, group, tokens, width // tokens, own, queries.cap, turned(ring.keys))
    start = queries.positions[:, 0]
    slots = jnp.clip(slots, 0, ring.keys.shape[0] - 1)
    lowest = start[:, None] + jnp.arange(0, width, tokens, dtype=jnp.int32)[None, :]
    beyond = start + length
    asked = lowest < beyond[:, None]
    newest = jnp.where(length > 0, start - 1, -1)
    first, count = ring_span(columns, jnp.broadcast_to(newest[:, None], lowest.shape), lowest)
    own_first, own_count = own_span(
        columns, start[:, None], lowest, jnp.minimum(lowest + tokens, beyond[:, None]), own
    )
    visits = list_visits(
        slots,
        columns,
        (first, jnp.where(asked, count, 0)),
        (own_first, jnp.where(asked, own_count, 0)),
        most=columns.blocks + width // own,
    )
    positions = (newest, start, beyond)
    out = _call(form, queries, ring, chunk, sink_logits, visits, positions, interpret)
    asked = jnp.repeat(asked, form.rows, axis=1)
    return _undo(form, jnp.where(asked[:, None, :, None], out, 0.0), width)


def _part(width: int, most: int) -> int:
    """`width`, halved until it is at most `most`; parts stay multiples of 8."""
    while width > most and width % 16 == 0:
        width //= 2
    return width


def why_not(rings: Sequence[attention.Ring], block: int) -> str | None:
    """What of a layer's rings these kernels cannot take; None = they can.

    Args:
      rings: of all classes, local shapes. block: of which their lengths are multiples.
    """
    kept = rings[0].keys.dtype
    if kept.name not in ("float32", "bfloat16", "int8", "uint8"):
        return f"rings of {kept.name}"
    if rings[0].keys.shape[3] % 8:
        return f"heads of {rings[0].keys.shape[3]} numbers, which 8 does not divide"
    if not _visits(rings, block):
        lengths = ", ".join(str(ring.keys.shape[2]) for ring in rings)
        return f"rings of {lengths} columns, read by {block}"
    return None


def columns_of(rings: Sequence[attention.Ring], block: int) -> int:
    """Columns of a visit to any ring of a layer; arguments as `why_not` has them, which agrees.

    Rings of several classes are read in the same blocks: a row's bits must not depend on its class.
    """
    sizes = _visits(rings, block)
    keys = rings[0].keys
    column = 2 * keys.shape[1] * keys.shape[3] * keys.dtype.itemsize
    return next((size for size in sizes if size * column >= _STEP_BYTES), sizes[-1])


def _visits(rings: Sequence[attention.Ring], block: int) -> list[int]:
    """Columns that a visit may have, ascending: whole tiles, or whole rings."""
    lengths = [ring.keys.shape[2] for ring in rings]
    keys = rings[0].keys
    tile = LANES if rings[0].key_scale is not None or turned(keys) else 32 // keys.dtype.itemsize
    parts = math.gcd(*lengths) // block
    sizes = [block * n for n in range(1, parts + 1) if parts % n == 0]
    return [size for size in sizes if size % tile == 0 or {size} == set(lengths)]


def turned(keys: jax.Array) -> bool:
    """Whether keys [B, K, L, H] lie in memory as [B, K, H, L], by the TPU compiler's own choice.

    It fills the 128 lanes of a tile with columns where heads are no multiple of 128.
    """
    return keys.shape[3] % LANES != 0 and keys.shape[2] % LANES == 0


def _heads_of(kv_heads: int, block: int, head_dim: int, ring: attention.Ring) -> int:
    """KV heads of a visit: all, or the most that fit."""
    lanes = -(-head_dim // LANES) * LANES
    each = 2 * block * lanes * ring.keys.dtype.itemsize
    fits = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n * each <= _MOST_BYTES]
    return max(fits, default=1)


def _cost(form: Form, queries: attention.Queries, ring: attention.Ring) -> pl.CostEstimate:
    """At the worst: every column of a row's ring held, in view of all parts of its queries."""
    rows, kv_heads, group, width, head_dim = queries.main.shape
    parts = (ring.keys, ring.values, ring.key_scale, ring.value_scale)
    held = sum(one.size * one.dtype.itemsize for one in parts if one is not None)
    read = held * form.parts * rows // ring.keys.shape[0]
    q = queries.main.size
    scores = rows * kv_heads * group * width * form.columns.length
    return pl.CostEstimate(
        flops=4 * scores * head_dim,
        transcendentals=scores,
        bytes_accessed=read + q * (queries.main.dtype.itemsize + 4),
    )


def _undo(form: Form, out: jax.Array, width: int) -> jax.Array:
    """[R, K, T * G, H] -> [R, T, K, G, H]."""
    rows, kv_heads, _, head_dim = out.shape
    return jnp.moveaxis(out.reshape(rows, kv_heads, width, form.group, head_dim), 2, 1)


def _rows(q: jax.Array | None) -> jax.Array | None:
    """[R, K, G, T, H] -> [R, K, T * G, H]."""
    if q is None:
        return None
    return jnp.swapaxes(q, 2, 3).reshape(*q.shape[:2], -1, q.shape[4])


def _call(
    form: Form,
    queries: attention.Queries,
    ring: attention.Ring,
    chunk: attention.Columns | None,
    sink_logits: jax.Array | None,
    visits: Visits,
    positions: tuple[jax.Array, jax.Array, jax.Array],
    interpret: bool,
) -> jax.Array:
    """[R, K, T * G, H] float32. positions: [R] int32 newest, start and beyond of `Scalars`."""
    rows, kv_heads, group, width, head_dim = queries.main.shape
    logits = None
    if sink_logits is not None:
        logits = jnp.tile(sink_logits.astype(jnp.float32).reshape(kv_heads, group), form.tokens)
        logits = jnp.broadcast_to(logits[:, :, None], (*logits.shape, LANES))
    keys, values = ring.keys, ring.values
    if form.turned:
        keys, values = jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)
    held = attention.Columns(keys, values, ring.key_scale, ring.value_scale)
    if not interpret:
        held = jax.tree.map(lambda one: pltpu.with_memory_space_constraint(one, pltpu.HBM), held)
    operands = Operands(_rows(queries.main), _rows(queries.sinks), logits, held, chunk)
    scalars = Scalars(visits.who, visits.ring, visits.own, *positions)
    scratch = Scratch(
        pltpu.VMEM((form.heads, form.rows, LANES), jnp.float32),
        pltpu.VMEM((form.heads, form.rows, LANES), jnp.float32),
        pltpu.VMEM((form.heads, form.rows, head_dim), jnp.float32),
    )
    q_spec, specs = _block_specs(form, operands, head_dim)
    call = pl.pallas_call(
        functools.partial(attend, form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(kv_heads // form.heads, visits.total),
            in_specs=specs,
            out_specs=q_spec,
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((rows, kv_heads, width * group, head_dim), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_cost(form, queries, ring),
        interpret=interpret,
        name="ring_decode" if chunk is None else "ring_prefill",
    )
    out: jax.Array = call(*scalars, *operands)
    return out


def _block_specs(form: Form, operands: Operands, head_dim: int) -> tuple[Any, list[Any]]:
    """Which block of each operand a visit takes; that of q is the output's too."""
    heads, size, blocks = form.heads, form.columns.block, form.columns.blocks

    def at_row(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        who = jnp.maximum(Scalars(*scalars).who[visit], 0)
        return jax.lax.div(who, form.parts), part, jax.lax.rem(who, form.parts), 0

    def at_ring(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        place = Scalars(*scalars).ring[visit]
        return jax.lax.div(place, blocks), part, jax.lax.rem(place, blocks), 0

    def at_own(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        who = jnp.maximum(Scalars(*scalars).who[visit], 0)
        own = jnp.maximum(Scalars(*scalars).own[visit], 0)
        return jax.lax.div(who, form.parts), part, own, 0

    def at_head(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        return part, 0, 0

    def at_columns(*args: Any) -> tuple[Any, ...]:
        row, part, block, _ = at_ring(*args)
        return row, part, 0, block

    def columns(given: attention.Columns, size: int, at: Any) -> attention.Columns:
        array = pl.BlockSpec((1, heads, size, head_dim), at)
        if form.turned and at is at_ring:
            array = pl.BlockSpec((1, heads, head_dim, size), at_columns)
        scales: tuple[Any, Any] = (None, None)
        if given.k_scale is not None:  # a block is whole tiles of 8 heads, or all

            def at_scale(*args: Any) -> tuple[Any, ...]:
                row, _, block, _ = at(*args)
                return row, 0, block

            scales = (pl.BlockSpec((1, given.k_scale.shape[1], size), at_scale),) * 2
        return attention.Columns(array, array, *scales)  # type: ignore[arg-type]

    q_spec = pl.BlockSpec((1, heads, form.rows, head_dim), at_row)
    specs = Operands(
        q_spec,
        None if operands.sink_q is None else q_spec,
        None if operands.logits is None else pl.BlockSpec((heads, form.rows, LANES), at_head),
        columns(operands.ring, size, at_ring),
        None if operands.chunk is None else columns(operands.chunk, form.own, at_own),
    )
    return q_spec, list(specs)
