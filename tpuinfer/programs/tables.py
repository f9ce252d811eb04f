"""Change the tables that steer slots, between dispatches.

Nothing is donated: dispatches that are on their way still read the old tables.
"""

import jax

from tpuinfer.ops.steering import Biases

MASKS_AT_A_TIME = 8
"""Rows of one call of `put_masks`, unless there are fewer slots."""


def put_masks(masks: jax.Array, slots: jax.Array, words: jax.Array) -> jax.Array:
    """Masks [B, W] int32 with those of `slots` [M] int32 replaced by `words` [M, W] int32.

    A slot beyond all of them changes nothing.
    """
    return masks.at[slots].set(words, mode="drop")


def put_bias(biases: Biases, slot: jax.Array, ids: jax.Array, values: jax.Array) -> Biases:
    """Biases [B, M] with one slot's entries replaced by `ids` [M] int32 and `values` [M]."""
    return Biases(biases.ids.at[slot].set(ids), biases.values.at[slot].set(values))
