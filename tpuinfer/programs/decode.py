"""Decode: tokens for every live slot, up to a quota of each, in one dispatch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, cast

import jax
import jax.numpy as jnp

from tpuinfer.cache.held import Rows, horizons
from tpuinfer.cache.ring import RingAttention
from tpuinfer.models.blueprint import bind
from tpuinfer.models.decoder import Decoder
from tpuinfer.ops.steering import Steering, Tables, penalised
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.choose import choose
from tpuinfer.programs.output import Output, nothing, pack
from tpuinfer.programs.rows import asking, count_tokens, everywhere, pad_rows, unpad_rows
from tpuinfer.programs.state import DecodeState
from tpuinfer.sharding.layout import Layout

Decode = Callable[..., tuple[DecodeState, Output]]


def make_decode(
    blueprint: Decoder,
    layout: Layout,
    *,
    settings: PlatformSettings,
    dtype: jnp.dtype,
    narrow: bool = False,
) -> Decode:
    """The decode program: (params, state, tables, quotas) -> state, Output [steps, B].

    quotas [B] int32 are traced: fewer steps need no other program. A slot takes at most its quota
    of steps, at most `steps`; with 0 it waits, and one whose quota is negative is dead from here
    on. The loop ends when no slot can go on. How steps are cut into dispatches changes no token.

    Args:
      narrow: take one argument more, `slots` [R] int32: the rows are these slots, an equal number
        on each data shard and there in any order; an idle row has a number beyond all. Slots that
        are not named do not decode. The result is [steps, R].
    """
    mode: Literal["narrow", "decode"] = "narrow" if narrow else "decode"
    attend = RingAttention(layout, settings.block, mode, settings.attention)
    min_rows, steps = settings.min_rows, settings.steps
    shards = layout.shards("batch")

    def decode(
        params: Mapping[str, jax.Array],
        state: DecodeState,
        tables: Tables,
        quotas: jax.Array,
        slots: jax.Array | None = None,
    ) -> tuple[DecodeState, Output]:
        model = bind(blueprint, params)
        total = state.token.shape[0]
        named, own_quotas = slots, quotas
        if slots is None:
            slots = jnp.arange(total, dtype=jnp.int32)
        else:
            own_quotas = quotas.at[slots].get(mode="fill", fill_value=-1)
        local = slots % (total // shards)
        seen_from = horizons(state.rings, local, shards)
        own = slots.shape[0] // shards

        def step(rows: DecodeState, going: jax.Array) -> tuple[DecodeState, Output]:
            given = Rows(local, rows.position, going.astype(jnp.int32), seen_from)
            given, tokens = everywhere((given, jnp.maximum(rows.token, 0)), layout)
            given = jax.tree.map(lambda x: pad_rows(x, shards, min_rows), given)
            tokens = pad_rows(tokens, shards, min_rows)[:, None]
            x, rings = model.hidden(tokens, rows.rings, given, attend, layout, dtype)
            logits = unpad_rows(model.cut_logits(x[:, 0], layout), shards, own)
            sampling, barred = asking(rows.sampling, going), jnp.where(going, rows.barred, 0)
            by = Steering(rows.counts, rows.stops, barred, tables, named)
            sampled = choose(logits, sampling, rows.position + 1, by, layout)
            at = jnp.where(penalised(sampling), slots, total)
            counts = count_tokens(rows.counts, at, sampled.tokens, layout)
            small, out = everywhere(
                (_advance(rows, going, sampled.tokens).small(), pack(sampled, going)), layout
            )
            return dataclasses.replace(small, rings=rings, counts=counts), out

        def may_go(index: jax.Array, rows: DecodeState) -> jax.Array:
            return rows.live & (index < own_quotas)

        def body(
            carry: tuple[jax.Array, DecodeState, Output],
        ) -> tuple[jax.Array, DecodeState, Output]:
            index, rows, outs = carry
            rows, out = step(rows, may_go(index, rows))
            outs = jax.tree.map(lambda all, one: all.at[index].set(one), outs, out)
            return index + 1, rows, outs

        def more(carry: tuple[jax.Array, DecodeState, Output]) -> jax.Array:
            index, rows, _ = carry
            return (index < steps) & may_go(index, rows).any()

        state = dataclasses.replace(state, live=state.live & (quotas >= 0))
        rows = state if named is None else _take(state, slots)
        start = (jnp.int32(0), rows, nothing(steps, slots.shape[0]))
        _, rows, out = jax.lax.while_loop(more, body, start)
        return (rows if named is None else _put(state, rows, slots)), out

    return decode


def _take(state: DecodeState, slots: jax.Array) -> DecodeState:
    """The rows of these slots; of those beyond all slots any, they have no quota."""
    rows = cast(DecodeState, jax.tree.map(lambda x: x.at[slots].get(mode="clip"), state.small()))
    return dataclasses.replace(rows, rings=state.rings, counts=state.counts)


def _put(state: DecodeState, rows: DecodeState, slots: jax.Array) -> DecodeState:
    """The state with these rows put back; those beyond all slots are dropped."""
    put = jax.tree.map(
        lambda all, one: all.at[slots].set(one, mode="drop"), state.small(), rows.small()
    )
    return cast(DecodeState, dataclasses.replace(put, rings=rows.rings, counts=rows.counts))


def _advance(rows: DecodeState, going: jax.Array, chosen: jax.Array) -> DecodeState:
    """The rows after every one that goes took its chosen token; the others stay as they are."""
    moved = going.astype(jnp.int32)
    remaining = rows.remaining - moved
    ended = going & ((remaining <= 0) | (chosen[:, None] == rows.stops).any(axis=-1))
    return dataclasses.replace(
        rows,
        token=jnp.where(going, chosen, rows.token),
        position=rows.position + moved,
        remaining=remaining,
        live=rows.live & ~ended,
        barred=jnp.maximum(rows.barred - moved, 0),
    )
