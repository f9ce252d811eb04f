"""Decode: up to n tokens for every live slot, in one dispatch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from tpuinfer.cache.ring import RingAttention, Rows, horizons
from tpuinfer.models.blueprint import bind
from tpuinfer.models.decoder import Decoder
from tpuinfer.ops.sampling import sample
from tpuinfer.programs.output import Output, nothing, pack
from tpuinfer.programs.rows import asking, pad_rows, unpad_rows
from tpuinfer.programs.state import DecodeState
from tpuinfer.sharding.rules import Layout

Decode = Callable[..., tuple[DecodeState, Output]]


def make_decode(
    blueprint: Decoder,
    layout: Layout,
    *,
    block: int,
    min_rows: int,
    steps: int,
    dtype: jnp.dtype,
    narrow: bool = False,
) -> Decode:
    """The decode program: (params, state, n, active) -> state, Output [steps, B].

    n (int32, at most `steps`) is traced: fewer steps need no other program. `active` [B] bool
    says which slots the host still wants; the others are dead from here on. The loop ends early
    when no row is live.

    Args:
      narrow: take one argument more, `slots` [R] int32: the rows are these slots, an equal number
        on each data shard and there in any order; an idle row has a number beyond all. Slots that
        are not named do not decode. The result is [steps, R].
    """
    attend = RingAttention(layout, block, "narrow" if narrow else "decode")
    shards = layout.shards("batch")

    def decode(
        params: Mapping[str, jax.Array],
        state: DecodeState,
        n: jax.Array,
        active: jax.Array,
        slots: jax.Array | None = None,
    ) -> tuple[DecodeState, Output]:
        model = bind(blueprint, params)
        total = state.token.shape[0]
        if slots is None:
            slots = jnp.arange(total, dtype=jnp.int32)
        local = slots % (total // shards)
        seen_from = horizons(state.rings, local, shards)
        own = slots.shape[0] // shards

        def step(rows: DecodeState) -> tuple[DecodeState, Output]:
            live = rows.live
            given = Rows(local, rows.position, live.astype(jnp.int32), seen_from)
            given = jax.tree.map(lambda x: pad_rows(x, shards, min_rows), given)
            tokens = pad_rows(jnp.maximum(rows.token, 0), shards, min_rows)[:, None]
            x, rings = model.hidden(tokens, rows.rings, given, attend, layout, dtype)
            logits = unpad_rows(model.logits(x[:, 0], layout), shards, own)
            sampled = sample(logits, asking(rows.sampling, live), rows.position + 1)
            return dataclasses.replace(_advance(rows, sampled.tokens), rings=rings), pack(
                sampled, live
            )

        def body(
            carry: tuple[jax.Array, DecodeState, Output],
        ) -> tuple[jax.Array, DecodeState, Output]:
            index, rows, outs = carry
            rows, out = step(rows)
            outs = jax.tree.map(lambda all, one: all.at[index].set(one), outs, out)
            return index + 1, rows, outs

        def more(carry: tuple[jax.Array, DecodeState, Output]) -> jax.Array:
            index, rows, _ = carry
            return (index < n) & rows.live.any()

        state = dataclasses.replace(state, live=state.live & active)
        rows = _take(state, slots) if narrow else state
        start = (jnp.int32(0), rows, nothing(steps, slots.shape[0]))
        _, rows, out = jax.lax.while_loop(more, body, start)
        return (_put(state, rows, slots) if narrow else rows), out

    return decode


def _take(state: DecodeState, slots: jax.Array) -> DecodeState:
    """The rows of these slots; those beyond all slots are not live."""
    small = dataclasses.replace(state, rings=())
    rows = cast(Any, jax.tree.map(lambda x: x.at[slots].get(mode="clip"), small))
    live = rows.live & (slots < state.token.shape[0])
    return cast(DecodeState, dataclasses.replace(rows, rings=state.rings, live=live))


def _put(state: DecodeState, rows: DecodeState, slots: jax.Array) -> DecodeState:
    """The state with these rows put back; those beyond all slots are dropped."""
    old, new = (dataclasses.replace(one, rings=()) for one in (state, rows))
    put = jax.tree.map(lambda all, one: all.at[slots].set(one, mode="drop"), old, new)
    return cast(DecodeState, dataclasses.replace(put, rings=rows.rings))


def _advance(rows: DecodeState, chosen: jax.Array) -> DecodeState:
    """The rows after every live one took its chosen token; dead ones stay as they are."""
    live = rows.live
    moved = live.astype(jnp.int32)
    remaining = rows.remaining - moved
    ended = (chosen[:, None] == rows.stops).any(axis=-1)
    return dataclasses.replace(
        rows,
        token=jnp.where(live, chosen, rows.token),
        position=rows.position + moved,
        remaining=remaining,
        live=live & (remaining > 0) & ~ended,
    )
