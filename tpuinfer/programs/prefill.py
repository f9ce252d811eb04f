"""Prefill: one chunk of a prompt per row, straight into its slot's rings.

Rows are many short prompts that share one read of the weights; each lies on its slot's data shard.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
from flax import struct

from tpuinfer.cache.held import Rows, horizons
from tpuinfer.cache.ring import RingAttention
from tpuinfer.models.blueprint import bind
from tpuinfer.models.decoder import Decoder
from tpuinfer.ops.sampling import TOP, Sampled, SamplingRows
from tpuinfer.ops.steering import IN_PROMPT, Steering, Tables, penalised
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.choose import choose
from tpuinfer.programs.output import Prefilled, pack
from tpuinfer.programs.rows import asking, count_tokens, pad_rows, unpad_rows
from tpuinfer.programs.scores import score_prompt, unscored
from tpuinfer.programs.state import DecodeState, row_arrays, shaped
from tpuinfer.sharding.layout import Layout


@struct.dataclass
class PrefillInput:
    """What the host sends along with a prefill; R rows, R / shards of them on each data shard.

    Attributes:
      tokens: [R, C] int32, padded with any id.
      targets: [R, C] int32, the prompt's token after each of them where its log-probability is
        asked for; -1 elsewhere.
      slot: [R] int32, global slot; it lies on the row's own data shard.
      start: [R] int32, position of tokens[:, 0].
      length: [R] int32, real tokens in the chunk; 0 = idle row.
      last: [R] bool, the prompt ends here: sample and let the slot decode.
      limit: [R] int32, tokens the row may generate, the first included.
      scored: [R] int32, how many of the most likely tokens are told beside each target.
      barred: [R] int32, how many tokens the row must make before `stops` may be picked.
      sampling, stops: as in DecodeState, for the row.
    """

    tokens: jax.Array
    targets: jax.Array
    slot: jax.Array
    start: jax.Array
    length: jax.Array
    last: jax.Array
    limit: jax.Array
    scored: jax.Array
    barred: jax.Array
    sampling: SamplingRows
    stops: jax.Array


def abstract_input(rows: int, width: int, max_stop_ids: int) -> PrefillInput:
    """Shapes of the input for chunks of `width` tokens."""
    i32, wide = shaped((rows,), jnp.int32), shaped((rows, width), jnp.int32)
    sampling, stops = row_arrays(rows, max_stop_ids)
    return PrefillInput(
        tokens=wide,
        targets=wide,
        slot=i32,
        start=i32,
        length=i32,
        last=shaped((rows,), bool),
        limit=i32,
        scored=i32,
        barred=i32,
        sampling=sampling,
        stops=stops,
    )


Prefill = Callable[
    [Mapping[str, jax.Array], DecodeState, Tables, PrefillInput],
    tuple[DecodeState, Prefilled],
]


def make_prefill(
    blueprint: Decoder, layout: Layout, *, settings: PlatformSettings, dtype: jnp.dtype
) -> Prefill:
    """The prefill program: (params, state, tables, input) -> state, Prefilled.

    It has the first token of rows whose prompt ends in this chunk, -1 for the others.
    """
    attend = RingAttention(layout, settings.block, "prefill", settings.attention)
    min_rows = settings.min_rows
    shards = layout.shards("batch")

    def prefill(
        params: Mapping[str, jax.Array], state: DecodeState, tables: Tables, given: PrefillInput
    ) -> tuple[DecodeState, Prefilled]:
        model = bind(blueprint, params)
        slot = given.slot % (state.token.shape[0] // shards)
        seen_from = horizons(state.rings, slot, shards)
        rows = Rows(slot, given.start, given.length, seen_from)
        x, rings = model.hidden(given.tokens, state.rings, rows, attend, layout, dtype)
        ends = given.last & (given.length > 0)
        counts = _count_prompt(state.counts, given)

        def first_tokens() -> Sampled:
            at = jnp.maximum(given.length - 1, 0)[:, None, None]
            final = jnp.take_along_axis(x, at, axis=1)[:, 0]
            logits = model.cut_logits(pad_rows(final, shards, min_rows), layout)
            logits = unpad_rows(logits, shards, final.shape[0] // shards)
            sampling, barred = asking(given.sampling, ends), jnp.where(ends, given.barred, 0)
            by = Steering(counts, given.stops, barred, tables, given.slot)
            return choose(logits, sampling, given.start + given.length, by, layout)

        def no_tokens() -> Sampled:
            i32, f32 = jnp.zeros(ends.shape, jnp.int32), jnp.zeros(ends.shape)
            wide = (*ends.shape, TOP)
            return Sampled(i32, f32, jnp.zeros(wide, jnp.int32), jnp.zeros(wide))

        sampled = jax.lax.cond(ends.any(), first_tokens, no_tokens)
        prompt = jax.lax.cond(
            (given.targets >= 0).any(),
            lambda: score_prompt(
                lambda x: model.logits(x, layout), x, given.targets, given.scored, shards
            ),
            lambda: unscored(*given.targets.shape),
        )
        out = pack(sampled, ends)
        tokens = out.packed[:, 0]
        at = jnp.where(penalised(given.sampling) & ends, given.slot, counts.shape[0])
        counts = count_tokens(counts, at, tokens, layout)
        state = dataclasses.replace(_open_slots(state, given, tokens), rings=rings, counts=counts)
        return state, Prefilled(jax.tree.map(lambda x: x[None], out), prompt)

    return prefill


def _count_prompt(counts: jax.Array, given: PrefillInput) -> jax.Array:
    """`counts` with the chunks of rows that are penalised marked; a prompt's first chunk begins."""
    beyond = counts.shape[0]
    counted = penalised(given.sampling) & (given.length > 0)
    first = jnp.where(counted & (given.start == 0), given.slot, beyond)
    counts = counts.at[first].set(0, mode="drop")
    index = jnp.arange(given.tokens.shape[1], dtype=jnp.int32)[None, :]
    real = counted[:, None] & (index < given.length[:, None])
    rows = jnp.where(real, given.slot[:, None], beyond)
    return counts.at[rows, given.tokens].set(IN_PROMPT, mode="drop")


def _open_slots(state: DecodeState, given: PrefillInput, tokens: jax.Array) -> DecodeState:
    """Write each row's side of the state into its slot; idle rows write nothing.

    A slot whose prompt goes on is not live; one whose first token already ends it is not either.
    """
    slots = state.token.shape[0]
    at = jnp.where(given.length > 0, given.slot, slots)
    remaining = given.limit - 1
    ended = (tokens[:, None] == given.stops).any(axis=-1)
    new = DecodeState(
        rings=(),
        token=tokens,
        position=given.start + given.length,
        live=given.last & (remaining > 0) & ~ended,
        remaining=remaining,
        sampling=given.sampling,
        stops=given.stops,
        barred=jnp.maximum(given.barred - 1, 0),
        counts=state.counts,
    )
    put = jax.tree.map(
        lambda old, rows: old.at[at].set(rows, mode="drop"), state.small(), new.small()
    )
    return cast(DecodeState, put)
