"""Log-probabilities of a prompt's own tokens, from the hidden states of a chunk.

Nothing of size [C, V] is made: the head runs over a few positions at a time, the same number of
rows in every program, so that a row's bits do not depend on how many prompts share its prefill.

    2 rows of 3 positions, 4 at a time      a0 b0 a1 b1 | a2 b2 .  .
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tpuinfer.ops.sampling import score
from tpuinfer.programs.output import Output, nothing, pack

SCORED_ROWS = 32
"""Rows per data shard that the head takes at a time."""


def score_prompt(
    head: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    targets: jax.Array,
    asked: jax.Array,
    shards: int,
) -> Output:
    """The scores of `targets`: [R, C, 2] and [R, C, 2, TOP], as `Prefilled.prompt` has them.

    Args:
      head: hidden states [n, D] to logits [n, V], n / shards of them on each data shard.
      x: [R, C, D].
      targets: [R, C] int32, the token after each position; -1 = not asked for.
      asked: [R] int32, how many of the most likely tokens beside it.
    """
    R, C = targets.shape
    blocks = math.ceil(R // shards * C / SCORED_ROWS)
    hidden = _blocks(x, shards, blocks)
    # Positions beyond the last target are left out.
    wanted = _blocks(targets + 1, shards, blocks) - 1
    tops = _blocks(jnp.broadcast_to(asked[:, None], targets.shape), shards, blocks)
    last = jnp.where((wanted >= 0).any(axis=1), jnp.arange(blocks, dtype=jnp.int32) + 1, 0).max()

    def body(index: jax.Array, outs: Output) -> Output:
        own = wanted[index]
        scored = score(
            head(hidden[index]), jnp.maximum(own, 0), jnp.where(own >= 0, tops[index], -1)
        )
        out = pack(scored, own >= 0)
        return jax.tree.map(lambda all, one: all.at[index].set(one), outs, out)

    outs = jax.lax.fori_loop(0, last, body, nothing(blocks, shards * SCORED_ROWS))
    return jax.tree.map(lambda out: _rows(out, shards, R, C), outs)


def unscored(rows: int, width: int) -> Output:
    """The scores of prompts that nobody asked for."""
    return nothing(rows, width)


def _blocks(x: jax.Array, shards: int, blocks: int) -> jax.Array:
    """[R, C, ...] to [blocks, shards * SCORED_ROWS, ...], position by position; padded with 0."""
    R, C, *rest = x.shape
    x = x.reshape(shards, R // shards, C, *rest).swapaxes(1, 2)
    x = x.reshape(shards, R // shards * C, *rest)
    padding = [(0, 0), (0, blocks * SCORED_ROWS - x.shape[1])] + [(0, 0)] * len(rest)
    x = jnp.pad(x, padding).reshape(shards, blocks, SCORED_ROWS, *rest)
    return x.swapaxes(0, 1).reshape(blocks, shards * SCORED_ROWS, *rest)


def _rows(x: jax.Array, shards: int, R: int, C: int) -> jax.Array:
    """Undo `_blocks`."""
    blocks, _, *rest = x.shape
    x = x.reshape(blocks, shards, SCORED_ROWS, *rest).swapaxes(0, 1)
    x = x.reshape(shards, blocks * SCORED_ROWS, *rest)[:, : R // shards * C]
    return x.reshape(shards, C, R // shards, *rest).swapaxes(1, 2).reshape(R, C, *rest)
