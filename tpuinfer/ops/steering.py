"""Steer what a row may pick: its logits, changed by what is there already and by what was asked.

Order of the transforms: repetition penalty (arXiv:1909.05858), frequency and presence
penalty, biases, ends that are barred, the mask of allowed tokens. Rows are independent: all
is elementwise, and a row that asks for nothing keeps its logits bit by bit, whatever others ask.
A kind that no row asks for is not computed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from tpuinfer.ops.sampling import SamplingRows

WORD = 32
"""Tokens in one word of a mask."""

IN_PROMPT = 1
GENERATED = 2
"""What a token's count holds: 1 if it is in the prompt, and 2 for each time it was generated."""

_LOWEST = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class Biases:
    """What to add to which logits; M entries for each of B slots.

    Attributes:
      ids: [B, M] int32, each token at most once; negative = no entry. values: [B, M] float32.
    """

    ids: jax.Array
    values: jax.Array


@struct.dataclass
class Tables:
    """What steers slots and changes between dispatches, never in one.

    Attributes:
      masks: [B, ceil(V / 32)] int32; bit i % 32 of word i // 32 says that token i is allowed.
      biases: of rows that ask for some.
    """

    masks: jax.Array
    biases: Biases


@struct.dataclass
class Steering:
    """All that steers R rows beside how they sample.

    Attributes:
      counts: [B, V] int32, what IN_PROMPT and GENERATED say; only of slots that are penalised.
      stops: [R, S] int32, token ids that end the row; -1 = none.
      barred: [R] int32, tokens for which those may not be picked, this one included.
      tables: of all slots.
      slots: [R] int32, the slot of each row, any for one that asks for nothing; None = the rows
        are all B slots in order.
    """

    counts: jax.Array
    stops: jax.Array
    barred: jax.Array
    tables: Tables
    slots: jax.Array | None = None

    def own(self, array: jax.Array) -> jax.Array:
        """The rows' part of an array [B, ...] of all slots."""
        return array if self.slots is None else array.at[self.slots].get(mode="clip")


def penalised(rows: SamplingRows) -> jax.Array:
    """[R] bool: rows with any penalty, whose tokens must be counted."""
    return (rows.repetition != 1) | (rows.presence != 0) | (rows.frequency != 0)


def steered(rows: SamplingRows, by: Steering) -> jax.Array:
    """[R] bool: rows whose logits `steer` may change."""
    return penalised(rows) | rows.biased | (by.barred > 0) | rows.constrained


def steer(logits: jax.Array, rows: SamplingRows, by: Steering) -> jax.Array:
    """What each row picks from: [R, V] float32, like `logits`."""
    counted, barred = penalised(rows), by.barred > 0
    kinds: tuple[tuple[jax.Array, Callable[[jax.Array], jax.Array]], ...] = (
        (counted, lambda x: penalise(x, by.own(by.counts), rows)),
        (rows.biased, lambda x: bias(x, jax.tree.map(by.own, by.tables.biases), rows.biased)),
        (barred, lambda x: bar(x, by.stops, barred)),
        (rows.constrained, lambda x: allow(x, by.own(by.tables.masks), rows.constrained)),
    )

    def change_all() -> jax.Array:
        x = logits
        for asked, change in kinds:
            x = jax.lax.cond(asked.any(), change, lambda x: x, x)
        return x

    return jax.lax.cond(steered(rows, by).any(), change_all, lambda: logits)


def penalise(logits: jax.Array, counts: jax.Array, rows: SamplingRows) -> jax.Array:
    """`logits` [R, V] less what tokens in the prompt or the answer cost; `counts` [R, V] int32.

    The repetition penalty is for both, the others for the answer alone.
    """
    repetition, presence, frequency = (
        x[:, None] for x in (rows.repetition, rows.presence, rows.frequency)
    )
    times = counts >> 1
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    x = jnp.where(counts > 0, repeated, logits)
    x = x - frequency * times.astype(jnp.float32)
    return x - jnp.where(times > 0, presence, 0.0)


def bias(logits: jax.Array, biases: Biases, biased: jax.Array) -> jax.Array:
    """`logits` [R, V] with the entries of rows that are `biased` [R] bool added; `biases` of R."""
    beyond = logits.shape[1]
    ids = jnp.where(biased[:, None] & (biases.ids >= 0), biases.ids, beyond)
    return jax.vmap(lambda x, at, add: x.at[at].add(add, mode="drop"))(logits, ids, biases.values)


def bar(logits: jax.Array, stops: jax.Array, barred: jax.Array) -> jax.Array:
    """`logits` [R, V], -inf for the `stops` [R, S] of rows that are `barred` [R] bool."""
    ids = jnp.where(barred[:, None] & (stops >= 0), stops, logits.shape[1])
    return jax.vmap(lambda x, at: x.at[at].set(-jnp.inf, mode="drop"))(logits, ids)


def allow(logits: jax.Array, masks: jax.Array, constrained: jax.Array) -> jax.Array:
    """`logits` [R, V], -inf for what the mask of a `constrained` row [R] bool does not name.

    A token that it names is finite or +inf: it can be picked even if it was NaN or -inf.

    Args:
      masks: [R, ceil(V / 32)] int32, with at least one bit in a row that is constrained.
    """
    bits = (masks[:, :, None] >> jnp.arange(WORD, dtype=jnp.int32)[None, None, :]) & 1
    named = bits.reshape(masks.shape[0], -1)[:, : logits.shape[1]] == 1
    possible = jnp.where(logits > _LOWEST, logits, _LOWEST)
    return jnp.where(constrained[:, None], jnp.where(named, possible, -jnp.inf), logits)
