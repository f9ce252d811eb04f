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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpuinfer.ops import attention
from tpuinfer.ops.kernels.visits import (
    Columns,
    Visits,
    held_position,
    list_visits,
    own_span,
    ring_span,
)
from tpuinfer.quant import rows as rows_of

_NEG = -1e30
_LANES = 128
_STEP_BYTES = 512 << 10
"""Keys and values that a visit should read: at 819 GB/s they take longer than the visit's own
overhead, some 0.35 us."""
_MOST_BYTES = 2 << 20
"""The most of them: VMEM holds two visits' at a time."""
_MOST_ROWS = 512
"""Rows of one product in a prefill."""


@dataclass(frozen=True)
class _Form:
    """What is known of a call when it is compiled.

    Attributes:
      heads: KV heads of a visit. group: G. tokens: of a part. parts: P. own: columns of the chunk
        in a visit; 0 = there is no chunk.
      turned: blocks of the rings lie as [H, S].
    """

    columns: Columns
    heads: int
    group: int
    tokens: int
    parts: int
    own: int
    cap: float | None
    turned: bool

    @property
    def rows(self) -> int:
        return self.tokens * self.group


class _Scalars(NamedTuple):
    """Prefetched to where the index maps see it. newest, start, beyond: [R] int32."""

    who: Any
    ring: Any
    own: Any
    newest: Any
    start: Any
    beyond: Any


class _Operands(NamedTuple):
    """What lies in HBM, or a visit's blocks of it; None = there is none."""

    q: Any
    sink_q: Any
    logits: Any
    ring: attention.Columns
    chunk: attention.Columns | None


class _Scratch(NamedTuple):
    """Running softmax of one row: highest, total [heads, M, 128], values [heads, M, H] float32."""

    highest: Any
    total: Any
    values: Any


class _Now(NamedTuple):
    """Where a visit is: row, position of its first query, number of its first KV head."""

    visit: Any
    row: Any
    lowest: Any
    head: Any


class _Block(NamedTuple):
    """The columns of a visit.

    Attributes:
      held: gives the position in column `at` of the block; -1 = none.
      sink_q: the queries that score sinks, if not those that score the rest.
      turned: keys and values lie as [H, S].
    """

    columns: attention.Columns
    held: Callable[[Any], Any]
    sink_q: Any = None
    turned: bool = False


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
    form = _Form(columns, heads, group, width, 1, 0, queries.cap, turned(ring.keys))
    slots = jnp.arange(rows, dtype=jnp.int32) if slots is None else slots
    start = queries.positions[:, 0]
    span = ring_span(columns, newest[:, None], start[:, None])
    visits = list_visits(slots, columns, span, most=columns.blocks)
    cost = _cost(form, queries, [ring.keys, ring.values], ring, 1.0)
    out = _call(
        form, queries, ring, None, sink_logits, visits, (newest, start, start), cost, interpret
    )
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
    rows, _, group, width, _ = queries.main.shape
    columns = Columns(ring.keys.shape[2], block, ring.window, ring.sinks)
    tokens, own = _part(width, max(1, _MOST_ROWS // group)), _part(width, 256)
    form = _Form(columns, 1, group, tokens, width // tokens, own, queries.cap, turned(ring.keys))
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
    share = form.parts * rows / ring.keys.shape[0]
    cost = _cost(form, queries, [ring.keys, ring.values], ring, share)
    out = _call(
        form, queries, ring, chunk, sink_logits, visits, (newest, start, beyond), cost, interpret
    )
    asked = jnp.repeat(asked, form.rows, axis=1)
    return _undo(form, jnp.where(asked[:, None, :, None], out, 0.0), width)


def _part(width: int, most: int) -> int:
    """`width`, halved until it is at most `most`; parts stay multiples of 16."""
    while width > most and width % 32 == 0:
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
    tile = _LANES if rings[0].key_scale is not None or turned(keys) else 32 // keys.dtype.itemsize
    parts = math.gcd(*lengths) // block
    sizes = [block * n for n in range(1, parts + 1) if parts % n == 0]
    return [size for size in sizes if size % tile == 0 or {size} == set(lengths)]


def turned(keys: jax.Array) -> bool:
    """Whether keys [B, K, L, H] lie in memory as [B, K, H, L], by the TPU compiler's own choice.

    It fills the 128 lanes of a tile with columns where heads are no multiple of 128.
    """
    return keys.shape[3] % _LANES != 0 and keys.shape[2] % _LANES == 0


def _heads_of(kv_heads: int, block: int, head_dim: int, ring: attention.Ring) -> int:
    """KV heads of a visit: all, or the most that fit."""
    lanes = -(-head_dim // _LANES) * _LANES
    each = 2 * block * lanes * ring.keys.dtype.itemsize
    fits = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and n * each <= _MOST_BYTES]
    return max(fits, default=1)


def _cost(
    form: _Form,
    queries: attention.Queries,
    parts: list[jax.Array],
    ring: attention.Ring,
    share: float,
) -> pl.CostEstimate:
    """At the worst: every column of the rings held, in view."""
    rows, kv_heads, group, width, head_dim = queries.main.shape
    scales = [one for one in (ring.key_scale, ring.value_scale) if one is not None]
    read = sum(one.size * one.dtype.itemsize for one in (*parts, *scales))
    q = queries.main.size
    scores = rows * kv_heads * group * width * form.columns.length
    return pl.CostEstimate(
        flops=4 * scores * head_dim,
        transcendentals=scores,
        bytes_accessed=int(read * share) + q * (queries.main.dtype.itemsize + 4),
    )


def _undo(form: _Form, out: jax.Array, width: int) -> jax.Array:
    """[R, K, T * G, H] -> [R, T, K, G, H]."""
    rows, kv_heads, _, head_dim = out.shape
    return jnp.moveaxis(out.reshape(rows, kv_heads, width, form.group, head_dim), 2, 1)


def _rows(q: jax.Array | None) -> jax.Array | None:
    """[R, K, G, T, H] -> [R, K, T * G, H]."""
    if q is None:
        return None
    turned = jnp.swapaxes(q, 2, 3)
    return turned.reshape(*q.shape[:2], -1, q.shape[4])


def _call(
    form: _Form,
    queries: attention.Queries,
    ring: attention.Ring,
    chunk: attention.Columns | None,
    sink_logits: jax.Array | None,
    visits: Visits,
    positions: tuple[jax.Array, jax.Array, jax.Array],
    cost: pl.CostEstimate,
    interpret: bool,
) -> jax.Array:
    rows, kv_heads, group, width, head_dim = queries.main.shape
    logits = None
    if sink_logits is not None:
        logits = jnp.tile(sink_logits.astype(jnp.float32).reshape(kv_heads, group), form.tokens)
        logits = jnp.broadcast_to(logits[:, :, None], (*logits.shape, _LANES))
    keys, values = ring.keys, ring.values
    if form.turned:
        keys, values = jnp.swapaxes(keys, 2, 3), jnp.swapaxes(values, 2, 3)
    held = attention.Columns(keys, values, ring.key_scale, ring.value_scale)
    if not interpret:
        held = jax.tree.map(lambda one: pltpu.with_memory_space_constraint(one, pltpu.HBM), held)
    operands = _Operands(_rows(queries.main), _rows(queries.sinks), logits, held, chunk)
    scalars = _Scalars(visits.who, visits.ring, visits.own, *positions)
    scratch = _Scratch(
        pltpu.VMEM((form.heads, form.rows, _LANES), jnp.float32),
        pltpu.VMEM((form.heads, form.rows, _LANES), jnp.float32),
        pltpu.VMEM((form.heads, form.rows, head_dim), jnp.float32),
    )
    q_spec, specs = _block_specs(form, operands, head_dim)
    call = pl.pallas_call(
        functools.partial(_kernel, form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(kv_heads // form.heads, visits.total),
            in_specs=specs,
            out_specs=q_spec,
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((rows, kv_heads, width * group, head_dim), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=cost,
        interpret=interpret,
        name="ring_decode" if chunk is None else "ring_prefill",
    )
    out: jax.Array = call(*scalars, *operands)
    return out


def _block_specs(form: _Form, operands: _Operands, head_dim: int) -> tuple[Any, list[Any]]:
    """Which block of each operand a visit takes; that of q is the output's too."""
    heads, size, blocks = form.heads, form.columns.block, form.columns.blocks

    def at_row(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        who = jnp.maximum(_Scalars(*scalars).who[visit], 0)
        return jax.lax.div(who, form.parts), part, jax.lax.rem(who, form.parts), 0

    def at_ring(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        place = _Scalars(*scalars).ring[visit]
        return jax.lax.div(place, blocks), part, jax.lax.rem(place, blocks), 0

    def at_own(part: Any, visit: Any, *scalars: Any) -> tuple[Any, ...]:
        who = jnp.maximum(_Scalars(*scalars).who[visit], 0)
        own = jnp.maximum(_Scalars(*scalars).own[visit], 0)
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
    specs = _Operands(
        q_spec,
        None if operands.sink_q is None else q_spec,
        None if operands.logits is None else pl.BlockSpec((heads, form.rows, _LANES), at_head),
        columns(operands.ring, size, at_ring),
        None if operands.chunk is None else columns(operands.chunk, form.own, at_own),
    )
    return q_spec, list(specs)


def _kernel(form: _Form, *refs: Any) -> None:
    scalars = _Scalars(*refs[: len(_Scalars._fields)])
    given = _Operands(*refs[len(scalars) : len(scalars) + len(_Operands._fields)])
    out, scratch = refs[len(scalars) + len(given)], _Scratch(*refs[len(scalars) + len(given) + 1 :])
    visit = pl.program_id(1)
    who = scalars.who[visit]
    row = jax.lax.div(who, form.parts)
    lowest = scalars.start[row] + jax.lax.rem(who, form.parts) * form.tokens
    now = _Now(visit, row, lowest, pl.program_id(0) * form.heads)

    @pl.when((visit == 0) | (scalars.who[jnp.maximum(visit - 1, 0)] != who))
    def _() -> None:
        logits = given.logits
        shape = scratch.highest.shape
        scratch.highest[...] = jnp.full(shape, _NEG) if logits is None else logits[...]
        scratch.total[...] = jnp.full(shape, 0.0 if logits is None else 1.0)
        scratch.values[...] = jnp.zeros(scratch.values.shape)

    _visit_ring(form, now, scalars, given, scratch)
    if given.chunk is not None:
        _visit_own(form, now, scalars, given, scratch)

    @pl.when(scalars.who[visit + 1] != who)
    def _() -> None:
        total = scratch.total[:, :, :1]
        out[0] = scratch.values[...] / jnp.where(total > 0, total, 1.0)


def _visit_ring(
    form: _Form, now: _Now, scalars: _Scalars, given: _Operands, scratch: _Scratch
) -> None:
    columns, newest = form.columns, scalars.newest[now.row]
    first = jax.lax.rem(scalars.ring[now.visit], columns.blocks) * columns.block
    held = functools.partial(held_position, columns, newest)
    whole = jnp.asarray(False)
    if not columns.sinks:
        from_, to = held(first), held(first + columns.block - 1)
        whole = (to - from_ == columns.block - 1) & _all_see(form, now.lowest, from_, to)
    block = _Block(given.ring, lambda at: held(first + at), given.sink_q, form.turned)
    here = jnp.asarray(True) if given.chunk is None else scalars.own[now.visit] < 0

    @pl.when(here & whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=False)

    @pl.when(here & ~whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=True)


def _visit_own(
    form: _Form, now: _Now, scalars: _Scalars, given: _Operands, scratch: _Scratch
) -> None:
    assert given.chunk is not None
    own, beyond = scalars.own[now.visit], scalars.beyond[now.row]
    first = scalars.start[now.row] + own * form.own
    last = first + form.own - 1
    whole = (last < beyond) & _all_see(form, now.lowest, first, last)
    block = _Block(given.chunk, lambda at: jnp.where(first + at < beyond, first + at, -1))

    @pl.when((own >= 0) & whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=False)

    @pl.when((own >= 0) & ~whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=True)


def _all_see(form: _Form, lowest: Any, from_: Any, to: Any) -> Any:
    """Whether every query of the part sees positions `from_` to `to`."""
    seen = (from_ >= 0) & (to <= lowest)
    if form.columns.window is not None:
        seen &= from_ > lowest + form.tokens - 1 - form.columns.window
    return seen


def _take(
    form: _Form, now: _Now, block: _Block, q: Any, scratch: _Scratch, *, masked: bool
) -> None:
    """Take a block of columns into the running softmax, head by head.

    Args:
      masked: some query does not see some column.
    """
    k, v, k_scale, v_scale = block.columns
    size = k.shape[3 if block.turned else 2]
    mask, clean, pinned = _masks(form, now, block, size) if masked else (None, None, None)

    def scale(ref: Any, head: int) -> Any:
        return ref[0, pl.ds(now.head + head, 1), :]

    for head in range(form.heads):
        keys, values = (_widened(ref[0, head], q.dtype) for ref in (k, v))
        scores = _dot(q[0, head], keys, not block.turned)
        if pinned is not None:
            sink_scores = _dot(block.sink_q[0, head], keys, not block.turned)
            scores = jnp.where(pinned, sink_scores, scores)
        if k_scale is not None:
            scores = scores * scale(k_scale, head)
        if form.cap is not None:
            scores = form.cap * jnp.tanh(scores / form.cap)
        if mask is not None and clean is not None:
            scores = jnp.where(mask, scores, _NEG)
            values = jnp.where(clean, values, jnp.zeros((), values.dtype))
        before = scratch.highest[head][:, :1]
        highest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - highest)
        if mask is not None:
            weights = jnp.where(mask, weights, 0.0)
        shrink = jnp.exp(before - highest)
        total = scratch.total[head][:, :1] * shrink + weights.sum(axis=1, keepdims=True)
        if v_scale is not None:
            weights = weights * scale(v_scale, head)
            if mask is not None:
                weights = jnp.where(mask, weights, 0.0)
        seen = _dot(weights.astype(values.dtype), values, block.turned)
        scratch.values[head] = scratch.values[head] * shrink + seen
        scratch.highest[head] = jnp.broadcast_to(highest, scratch.highest.shape[1:])
        scratch.total[head] = jnp.broadcast_to(total, scratch.total.shape[1:])


def _masks(form: _Form, now: _Now, block: _Block, size: int) -> tuple[Any, Any, Any]:
    """What each query sees [M, S]; what any of them sees, along values; which columns are sinks."""
    held = block.held(jax.lax.broadcasted_iota(jnp.int32, (form.rows, size), 1))
    token = jax.lax.broadcasted_iota(jnp.int32, (form.rows, size), 0)
    at = now.lowest + (0 if form.tokens == 1 else _divide(token, form.group))
    shape = (1, size) if block.turned else (size, 1)
    along = block.held(jax.lax.broadcasted_iota(jnp.int32, shape, 1 if block.turned else 0))
    clean = _sees(form, along, now.lowest, now.lowest + form.tokens - 1)
    pinned = None if block.sink_q is None else held < form.columns.sinks
    return _sees(form, held, at, at), clean, pinned


def _sees(form: _Form, held: Any, lowest: Any, highest: Any) -> Any:
    """Whether a query somewhere in lowest .. highest sees what a column holds."""
    seen = (held >= 0) & (held <= highest)
    if form.columns.window is None:
        return seen
    near = held > lowest - form.columns.window
    return seen & (near | (held < form.columns.sinks) if form.columns.sinks else near)


def _divide(number: Any, by: int) -> Any:
    """Whole number below 2**20 by a small one: vectors have no integer division."""
    if by == 1:
        return number
    return ((number.astype(jnp.float32) + 0.5) * (1 / by)).astype(jnp.int32)


def _widened(codes: Any, dtype: Any) -> Any:
    """Codes, as they lie, in the dtype that multiplies; no scale."""
    kept = rows_of.kept(codes.dtype)
    if kept != codes.dtype:
        codes = pltpu.bitcast(codes, kept)
    return codes.astype(dtype)


def _dot(one: Any, other: Any, by_rows: bool) -> Any:
    """[A, X] x [B, X] if `by_rows`, else [A, X] x [X, B]; sums in float32."""
    exact = one.dtype == jnp.float32
    return jax.lax.dot_general(
        one,
        other,
        (((1,), (1 if by_rows else 0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
