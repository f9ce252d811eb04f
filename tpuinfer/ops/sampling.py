"""Pick the next token of every row, exactly, on the device.

Order of the transforms (vLLM's): temperature, min_p, top_k, top_p over what is left. Rows are
independent: a row's token and log-probability do not depend on what its neighbours ask for, only
the work done does. Ties go to the lowest id everywhere.

Cuts need no sort: float32 values map to uint32 keys of the same order, and the threshold is found
bit by bit, 32 passes over [R, V]. Entries that tie at the threshold are counted in by id.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

_BITS = 32


@struct.dataclass
class SamplingRows:
    """How each of R rows samples; all fields [R].

    Attributes:
      temperature: float32; 0 = take the most likely token.
      top_p, min_p: float32; 1 and 0 keep all. top_k: int32; 0 keeps all.
      seed: uint32. choice: int32, which of several answers to one prompt.
      logprobs: bool, whether the chosen token's log-probability is wanted.
    """

    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    top_k: jax.Array
    seed: jax.Array
    choice: jax.Array
    logprobs: jax.Array


def sample(
    logits: jax.Array, rows: SamplingRows, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token per row.

    Args:
      logits: [R, V] float32.
      positions: [R] int32 position that the new token will take; it enters the random key.

    Returns:
      tokens [R] int32, and their log-probabilities [R] float32 under softmax(logits), which are 0
      where not asked for.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    sampled = rows.temperature > 0
    tokens = jax.lax.cond(
        sampled.any(),
        lambda: jnp.where(sampled, _draw(logits, rows, positions), greedy),
        lambda: greedy,
    )

    def score() -> jax.Array:
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        return jnp.where(rows.logprobs, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)

    logprobs = jax.lax.cond(rows.logprobs.any(), score, lambda: jnp.zeros(tokens.shape))
    return tokens, logprobs


def _draw(logits: jax.Array, rows: SamplingRows, positions: jax.Array) -> jax.Array:
    """Gumbel-max over the tokens that survive the cuts: [R] int32."""
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # The highest logit comes down to 0 first, so that no temperature can make infinities meet.
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / temperature[:, None]
    kept = keep(scaled, rows)

    def noise(seed: jax.Array, choice: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), choice)
        return jax.random.gumbel(jax.random.fold_in(key, position), (logits.shape[1],))

    noisy = scaled + jax.vmap(noise)(rows.seed, rows.choice, positions)
    return jnp.argmax(jnp.where(kept, noisy, -jnp.inf), axis=-1).astype(jnp.int32)


def keep(scaled: jax.Array, rows: SamplingRows) -> jax.Array:
    """[R, V] bool: which tokens survive min_p, top_k and top_p; at least one per row.

    Args:
      scaled: [R, V] float32 logits over temperature.
    """
    weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
    kept = weights >= rows.min_p[:, None]
    cuts_k = rows.top_k > 0
    cuts_p = rows.top_p < 1
    keys = _ordered(scaled)

    def cut_k(kept: jax.Array) -> jax.Array:
        cut = _top_k(keys, kept, rows.top_k)
        return jnp.where(cuts_k[:, None], cut, kept)

    def cut_p(kept: jax.Array) -> jax.Array:
        cut = _top_p(keys, weights, kept, rows.top_p)
        return jnp.where(cuts_p[:, None], cut, kept)

    kept = jax.lax.cond(cuts_k.any(), cut_k, lambda kept: kept, kept)
    return jax.lax.cond(cuts_p.any(), cut_p, lambda kept: kept, kept)


def _top_k(keys: jax.Array, kept: jax.Array, k: jax.Array) -> jax.Array:
    threshold = _highest(keys, lambda above: (above & kept).sum(axis=-1, dtype=jnp.int32) >= k)
    more = kept & (keys > threshold[:, None])
    ties = kept & (keys == threshold[:, None])
    return more | _first(ties, k - more.sum(axis=-1, dtype=jnp.int32))


def _top_p(keys: jax.Array, weights: jax.Array, kept: jax.Array, p: jax.Array) -> jax.Array:
    weights = jnp.where(kept, weights, 0.0)
    wanted = p * weights.sum(axis=-1)

    def mass(chosen: jax.Array) -> jax.Array:
        return jnp.where(chosen, weights, 0.0).sum(axis=-1)

    threshold = _highest(keys, lambda above: mass(above) >= wanted)
    more = kept & (keys > threshold[:, None])
    ties = kept & (keys == threshold[:, None])
    each = jnp.where(ties, weights, 0.0).max(axis=-1)
    need = jnp.ceil((wanted - mass(more)) / jnp.where(each > 0, each, 1.0))
    return more | _first(ties, jnp.maximum(need, 1.0).astype(jnp.int32))


def _ordered(x: jax.Array) -> jax.Array:
    """Float32 to uint32 keys of the same order (-0.0 counts as 0.0)."""
    sign = jnp.uint32(1 << (_BITS - 1))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = jnp.where(bits == sign, 0, bits)  # not x + 0.0, which the compiler takes for x
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _highest(keys: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The highest threshold [R] for which `enough(keys >= threshold)` holds (it holds at 0)."""

    def settle(index: jax.Array, found: jax.Array) -> jax.Array:
        bit = jnp.uint32(1) << (jnp.uint32(_BITS - 1) - index.astype(jnp.uint32))
        higher = found | bit
        return jnp.where(enough(keys >= higher[:, None]), higher, found)

    return jax.lax.fori_loop(0, _BITS, settle, jnp.zeros(keys.shape[0], jnp.uint32))


def _first(ties: jax.Array, count: jax.Array) -> jax.Array:
    """The `count` entries of lowest id among `ties`: [R, V] bool."""
    width = ties.shape[1]
    ids = jnp.arange(width, dtype=jnp.int32)[None, :]

    def cut() -> jax.Array:
        def settle(index: jax.Array, found: jax.Array) -> jax.Array:
            bound = found | (jnp.int32(1) << (width.bit_length() - 1 - index))
            within = (ties & (ids < bound[:, None])).sum(axis=-1, dtype=jnp.int32)
            return jnp.where(within <= count, bound, found)

        start = jnp.zeros(ties.shape[0], jnp.int32)
        bound = jax.lax.fori_loop(0, width.bit_length(), settle, start)
        return ties & (ids < bound[:, None])

    too_many = (ties.sum(axis=-1, dtype=jnp.int32) > count).any()
    return jax.lax.cond(too_many, cut, lambda: ties)
