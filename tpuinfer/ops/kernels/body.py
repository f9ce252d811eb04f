"""What a visit of the attention kernel does: a block of columns into a row's running softmax.

    scores    [M, S] of a part's queries, all heads of a group together, and the block's columns
    weights   zero where a query does not see a column; values that no query sees are zero as well,
              since a ring may hold anything there, NaN too

Letters: as in `ring`, which says what lies where and calls `attend`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tpuinfer.ops import attention
from tpuinfer.ops.kernels.visits import Columns, held_position
from tpuinfer.quant import rows as rows_of

LANES = 128
_NEG = -1e30


@dataclass(frozen=True)
class Form:
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


class Scalars(NamedTuple):
    """Prefetched to where the index maps see it. newest, start, beyond: [R] int32."""

    who: Any
    ring: Any
    own: Any
    newest: Any
    start: Any
    beyond: Any


class Operands(NamedTuple):
    """What lies in HBM, or a visit's blocks of it; None = there is none."""

    q: Any
    sink_q: Any
    logits: Any
    ring: attention.Columns
    chunk: attention.Columns | None


class Scratch(NamedTuple):
    """Running softmax of one row: highest, total [heads, M, 128], values [heads, M, H] float32."""

    highest: Any
    total: Any
    values: Any


class Now(NamedTuple):
    """Where a visit is: row, position of its first query, number of its first KV head."""

    visit: Any
    row: Any
    lowest: Any
    head: Any


class Block(NamedTuple):
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


def attend(form: Form, *refs: Any) -> None:
    """One visit: block `ring[visit]` of the ring, or block `own[visit]` of the row's own chunk.

    Args:
      refs: of `Scalars`, `Operands`, the output's block [1, heads, M, H] float32 and `Scratch`.
    """
    scalars = Scalars(*refs[: len(Scalars._fields)])
    given = Operands(*refs[len(scalars) : len(scalars) + len(Operands._fields)])
    out, scratch = refs[len(scalars) + len(given)], Scratch(*refs[len(scalars) + len(given) + 1 :])
    visit = pl.program_id(1)
    who = jnp.maximum(scalars.who[visit], 0)
    row = jax.lax.div(who, form.parts)
    lowest = scalars.start[row] + jax.lax.rem(who, form.parts) * form.tokens
    now = Now(visit, row, lowest, pl.program_id(0) * form.heads)

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


def _visit_ring(form: Form, now: Now, scalars: Scalars, given: Operands, scratch: Scratch) -> None:
    columns, newest = form.columns, scalars.newest[now.row]
    first = jax.lax.rem(scalars.ring[now.visit], columns.blocks) * columns.block
    held = functools.partial(held_position, columns, newest)
    whole = jnp.asarray(False)
    if not columns.sinks:
        from_, to = held(first), held(first + columns.block - 1)
        whole = (to - from_ == columns.block - 1) & _all_see(form, now.lowest, from_, to)
    block = Block(given.ring, lambda at: held(first + at), given.sink_q, form.turned)
    here = jnp.asarray(True) if given.chunk is None else scalars.own[now.visit] < 0

    @pl.when(here & whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=False)

    @pl.when(here & ~whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=True)


def _visit_own(form: Form, now: Now, scalars: Scalars, given: Operands, scratch: Scratch) -> None:
    assert given.chunk is not None
    own, beyond = scalars.own[now.visit], scalars.beyond[now.row]
    first = scalars.start[now.row] + own * form.own
    last = first + form.own - 1
    whole = (last < beyond) & _all_see(form, now.lowest, first, last)
    block = Block(given.chunk, lambda at: jnp.where(first + at < beyond, first + at, -1))

    @pl.when((own >= 0) & whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=False)

    @pl.when((own >= 0) & ~whole)
    def _() -> None:
        _take(form, now, block, given.q, scratch, masked=True)


def _all_see(form: Form, lowest: Any, from_: Any, to: Any) -> Any:
    """Whether every query of the part sees positions `from_` to `to`."""
    seen = (from_ >= 0) & (to <= lowest)
    if form.columns.window is not None:
        seen &= from_ > lowest + form.tokens - 1 - form.columns.window
    return seen


def _take(form: Form, now: Now, block: Block, q: Any, scratch: Scratch, *, masked: bool) -> None:
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


def _masks(form: Form, now: Now, block: Block, size: int) -> tuple[Any, Any, Any]:
    """What each query sees [M, S]; what any of them sees, along values; which columns are sinks."""
    held = block.held(jax.lax.broadcasted_iota(jnp.int32, (form.rows, size), 1))
    token = jax.lax.broadcasted_iota(jnp.int32, (form.rows, size), 0)
    at = now.lowest + (0 if form.tokens == 1 else _divide(token, form.group))
    shape = (1, size) if block.turned else (size, 1)
    along = block.held(jax.lax.broadcasted_iota(jnp.int32, shape, 1 if block.turned else 0))
    clean = _sees(form, along, now.lowest, now.lowest + form.tokens - 1)
    pinned = None if block.sink_q is None else held < form.columns.sinks
    return _sees(form, held, at, at), clean, pinned


def _sees(form: Form, held: Any, lowest: Any, highest: Any) -> Any:
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
