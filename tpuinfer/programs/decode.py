"""Decode: up to n tokens for every live slot, in one dispatch."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct

from tpuinfer.cache.ring import RingAttention, Rows
from tpuinfer.models.blueprint import bind
from tpuinfer.models.llama import Llama
from tpuinfer.ops.sampling import sample
from tpuinfer.programs.rows import pad_rows, unpad_rows
from tpuinfer.programs.state import DecodeState
from tpuinfer.sharding.rules import Layout


@struct.dataclass
class Decoded:
    """What the steps of one dispatch produced.

    Attributes:
      tokens: [n, B] int32, -1 where a slot produced nothing. logprobs: [n, B] float32.
    """

    tokens: jax.Array
    logprobs: jax.Array


Decode = Callable[
    [Mapping[str, jax.Array], DecodeState, jax.Array, jax.Array], tuple[DecodeState, Decoded]
]


def make_decode(
    blueprint: Llama, layout: Layout, *, block: int, min_rows: int, steps: int, dtype: jnp.dtype
) -> Decode:
    """The decode program: (params, state, n, active) -> state, Decoded.

    n (int32, at most `steps`) is traced: fewer steps need no other program. `active` [B] bool
    says which slots the host still wants; the others are dead from here on. The loop ends early
    when no row is live.
    """
    attend = RingAttention(layout, block, identity=True)
    shards = layout.shards("batch")

    def decode(
        params: Mapping[str, jax.Array], state: DecodeState, n: jax.Array, active: jax.Array
    ) -> tuple[DecodeState, Decoded]:
        model = bind(blueprint, params)
        slots = state.token.shape[0]
        own = slots // shards

        def step(state: DecodeState) -> tuple[DecodeState, jax.Array, jax.Array]:
            live = state.live
            local = jnp.arange(slots, dtype=jnp.int32) % own
            rows = Rows(local, state.position, live.astype(jnp.int32))
            rows = jax.tree.map(lambda x: pad_rows(x, shards, min_rows), rows)
            tokens = pad_rows(jnp.maximum(state.token, 0), shards, min_rows)[:, None]
            x, rings = model.hidden(tokens, state.rings, rows, attend, layout, dtype)
            logits = unpad_rows(model.logits(x[:, 0], layout), shards, own)
            chosen, logprobs = sample(logits, state.sampling, state.position + 1)
            return (
                dataclasses.replace(_advance(state, chosen), rings=rings),
                jnp.where(live, chosen, -1),
                logprobs,
            )

        def body(
            carry: tuple[jax.Array, DecodeState, Decoded],
        ) -> tuple[jax.Array, DecodeState, Decoded]:
            index, state, out = carry
            state, tokens, logprobs = step(state)
            out = Decoded(out.tokens.at[index].set(tokens), out.logprobs.at[index].set(logprobs))
            return index + 1, state, out

        def more(carry: tuple[jax.Array, DecodeState, Decoded]) -> jax.Array:
            index, state, _ = carry
            return (index < n) & state.live.any()

        state = dataclasses.replace(state, live=state.live & active)
        nothing = Decoded(jnp.full((steps, slots), -1, jnp.int32), jnp.zeros((steps, slots)))
        _, state, out = jax.lax.while_loop(more, body, (jnp.int32(0), state, nothing))
        return state, out

    return decode


def _advance(state: DecodeState, chosen: jax.Array) -> DecodeState:
    """The state after every live row took its chosen token; dead rows stay as they are."""
    live = state.live
    moved = live.astype(jnp.int32)
    remaining = state.remaining - moved
    ended = (chosen[:, None] == state.stops).any(axis=-1)
    return dataclasses.replace(
        state,
        token=jnp.where(live, chosen, state.token),
        position=state.position + moved,
        remaining=remaining,
        live=live & (remaining > 0) & ~ended,
    )
