"""Pick the next token of every row, exactly, on the device.

Order of the transforms (vLLM's): temperature, min_p, top_k, top_p over what is left. Rows are
independent: a row's token and log-probabilities do not depend on what its neighbours ask for, only
the work done does. Ties go to the lowest id everywhere.

Sampling works on weights, exp((logit - highest) / temperature) in float32: 1 for the most likely
token, 0 for a token that is cut; tokens of equal weight tie. What is added up over the vocabulary
are integers, 2**-30ths of the whole: exact, so the same in every order and for any number of rows.

Cuts need no sort: the threshold is a float32 between 0 and 1, whose bits are found one by one, each
with a sum over [R, W]. Drawing needs no cumulative sum over the vocabulary: the weights are padded
with zeros to a width W that divides into groups of 64 blocks of 64,

    vocabulary   |b0|b1| ...  |b63|b64| ... |b127| ...
    group        |       0        |      1       | ...
    block        | 0  1  ...   63 | 0   ...   63 | ...

and one uniform picks the group by its mass, a second a block in it, a third the token.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

TOP = 20
"""How many of the most likely tokens a row may ask for."""

_FAN = 64
_WEIGHT_BITS = 30
"""1.0 is 0x3F800000: the two highest bits of a weight are 0, and its bits are in its order."""
_WHOLE = 2.0**30
"""What all weights together come to as integers; rounding leaves room below 2**31."""


@struct.dataclass
class SamplingRows:
    """How each of R rows samples; all fields [R].

    Attributes:
      temperature: float32; 0 = take the most likely token.
      top_p, min_p: float32; 1 and 0 keep all. top_k: int32; 0 keeps all.
      seed: uint32. choice: int32, which of several answers to one prompt.
      logprobs: int32; -1 = no log-probabilities, 0 = the chosen token's, n in 1..TOP = the n most
        likely tokens' as well.
      repetition, presence, frequency: float32 penalties; 1, 0 and 0 change nothing.
      biased: bool, some logits are shifted. constrained: bool, only some tokens are allowed.
    """

    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    top_k: jax.Array
    seed: jax.Array
    choice: jax.Array
    logprobs: jax.Array
    repetition: jax.Array
    presence: jax.Array
    frequency: jax.Array
    biased: jax.Array
    constrained: jax.Array


@struct.dataclass
class Sampled:
    """One token per row, and what the row asked to know.

    Log-probabilities are under softmax(logits): steering, temperature and cuts do not enter.

    Attributes:
      tokens: [R] int32. logprobs: [R] float32, theirs; 0 where not asked for.
      top_ids: [R, TOP] int32, the most likely tokens, best first; -1 beyond what the row asked
        for and beyond the vocabulary. top_logprobs: [R, TOP] float32, theirs; 0 there.
    """

    tokens: jax.Array
    logprobs: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def sample(
    logits: jax.Array,
    rows: SamplingRows,
    positions: jax.Array,
    steered: jax.Array | None = None,
) -> Sampled:
    """One token per row.

    A row with NaN still gives an id within the vocabulary.

    Args:
      logits: [R, V] float32.
      positions: [R] int32 position that the new token will take; it enters the random key.
      steered: [R, V] float32 to pick from, as `ops.steering` makes it; None = `logits`.
    """
    V = logits.shape[1]
    offered = logits if steered is None else steered
    greedy, highest = most_likely(offered)
    sampled = rows.temperature > 0

    def draw() -> jax.Array:
        shares = cut(weigh(offered, highest, rows.temperature), rows)
        drawn = _draw(shares, uniforms(rows, positions))
        return jnp.where(sampled & (drawn < V), drawn, greedy)

    tokens = jax.lax.cond(sampled.any(), draw, lambda: greedy)
    return score(logits, tokens, rows.logprobs)


def score(logits: jax.Array, tokens: jax.Array, asked: jax.Array) -> Sampled:
    """The log-probabilities of `tokens` [R] int32 and of the most likely ones.

    Args:
      logits: [R, V] float32.
      asked: [R] int32, as `SamplingRows.logprobs`.
    """
    nothing = untold(tokens)
    told = (asked >= 0).any()
    return jax.lax.cond(told, lambda: _score(logits, asked, nothing), lambda: nothing)


def untold(tokens: jax.Array) -> Sampled:
    """`tokens` [R] int32 of rows that asked for no log-probabilities."""
    R = tokens.shape[0]
    return Sampled(
        tokens,
        jnp.zeros(R, jnp.float32),
        jnp.full((R, TOP), -1, jnp.int32),
        jnp.zeros((R, TOP), jnp.float32),
    )


def most_likely(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lowest id [R] int32 of the highest of `logits` [R, V], and that logit [R].

    Of a row with NaN any id.
    """
    return jax.lax.platform_dependent(logits, cpu=_by_blocks, default=_at_once)


def _by_blocks(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Among the blocks first, then within one: on a CPU several times as fast as one argmax."""
    R, V = logits.shape
    blocks = jnp.pad(logits, ((0, 0), (0, -V % _FAN)), constant_values=-jnp.inf)
    blocks = blocks.reshape(R, -1, _FAN)
    block = blocks.max(axis=-1).argmax(axis=-1).astype(jnp.int32)
    entries = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _FAN + entries.argmax(axis=-1).astype(jnp.int32), entries.max(axis=-1)


def _at_once(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With no blocks: on a TPU they would be copies of the logits, in another order."""
    return logits.argmax(axis=-1).astype(jnp.int32), logits.max(axis=-1)


def weigh(logits: jax.Array, highest: jax.Array, temperature: jax.Array) -> jax.Array:
    """The weights [R, W] float32 of `logits` [R, V]; NaN weighs 0, `temperature` 0 counts as 1."""
    temperature = jnp.where(temperature > 0, temperature, 1.0)
    # The highest logit comes down to 0 first, so that no temperature can make infinities meet.
    weights = jnp.exp(_fall(logits, highest) / temperature[:, None])
    weights = jnp.where(weights > 0, weights, 0.0)
    return jnp.pad(weights, ((0, 0), (0, -logits.shape[1] % _FAN**2)))


def _fall(logits: jax.Array, highest: jax.Array) -> jax.Array:
    """How far `logits` [R, n] lie under the highest [R] of their row; no inf - inf."""
    return jnp.where(logits == highest[:, None], 0.0, logits - highest[:, None])


def cut(weights: jax.Array, rows: SamplingRows) -> jax.Array:
    """What min_p, top_k and top_p leave of `weights` [R, W], as shares: at least one is not 0.

    Returns:
      [R, W] int32; before top_p, the shares of a row come to about 2**30. What weighs less than
      2**-31 of them all is lost: the uniforms are coarser than that.
    """
    weights = jnp.where(weights >= rows.min_p[:, None], weights, 0.0)

    def top_k(weights: jax.Array) -> jax.Array:
        kept = _reach(weights, jnp.ones_like(weights, jnp.int32), rows.top_k)
        return jnp.where(kept | (rows.top_k <= 0)[:, None], weights, 0.0)

    weights = jax.lax.cond((rows.top_k > 0).any(), top_k, lambda weights: weights, weights)
    scale = _WHOLE / jnp.maximum(_sum(weights), 1.0)
    shares = jnp.round(weights * scale[:, None]).astype(jnp.int32)

    def top_p(shares: jax.Array) -> jax.Array:
        wanted = jnp.ceil(rows.top_p * _count(shares).astype(jnp.float32)).astype(jnp.int32)
        kept = _reach(weights, shares, wanted)
        return jnp.where(kept | (rows.top_p >= 1)[:, None], shares, 0)

    return jax.lax.cond((rows.top_p < 1).any(), top_p, lambda shares: shares, shares)


def _reach(weights: jax.Array, measure: jax.Array, wanted: jax.Array) -> jax.Array:
    """[R, W] bool: the heaviest `weights` whose `measure` sums up to `wanted`.

    Args:
      weights: [R, W] float32.
      measure: [R, W] int32, the same for entries of equal weight.
      wanted: [R] int32; beyond the sum of all it keeps all, and at least one is kept.
    """

    def enough(bits: jax.Array) -> jax.Array:
        threshold = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return _count(jnp.where(weights >= threshold[:, None], measure, 0)) >= wanted

    bits = _highest(_WEIGHT_BITS, enough, weights.shape[0])
    threshold = jnp.minimum(jax.lax.bitcast_convert_type(bits, jnp.float32), 1.0)[:, None]
    # The threshold is itself a weight, unless all weights together fall short of `wanted`.
    ties = (weights == threshold) & (weights > 0)
    missing = wanted - _count(jnp.where(weights > threshold, measure, 0))
    each = jnp.maximum(jnp.where(ties, measure, 0).max(axis=-1), 1)
    count = jnp.maximum((missing + each - 1) // each, 1)
    return (weights > threshold) | _first(ties, count)


def _first(ties: jax.Array, count: jax.Array) -> jax.Array:
    """The `count` [R] int32 entries of lowest id among `ties`: [R, W] bool."""
    R, W = ties.shape
    ones = ties.astype(jnp.int32)
    ids = jnp.arange(W, dtype=jnp.uint32)[None, :]

    def lowest() -> jax.Array:
        def few(bound: jax.Array) -> jax.Array:
            return _count(jnp.where(ids < bound[:, None], ones, 0)) <= count

        return ties & (ids < _highest(W.bit_length(), few, R)[:, None])

    return jax.lax.cond((_count(ones) > count).any(), lowest, lambda: ties)


def _highest(bits: int, holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The highest value [R] uint32 of so many bits that `holds`, where 0 and all below it do."""

    def settle(index: jax.Array, found: jax.Array) -> jax.Array:
        higher = found | (jnp.uint32(1) << (jnp.uint32(bits - 1) - index.astype(jnp.uint32)))
        return jnp.where(holds(higher), higher, found)

    return jax.lax.fori_loop(0, bits, settle, jnp.zeros(rows, jnp.uint32))


def _count(x: jax.Array) -> jax.Array:
    """The sum over axis 1 of [R, W] int32, in any order; the halves make it fast on a CPU."""
    while x.shape[1] > 8 * _FAN:
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x.sum(axis=1, dtype=jnp.int32)


def _sum(x: jax.Array) -> jax.Array:
    """The sum over axis 1 of [R, W] float32.

    The order of the additions is written down here, so it is the same for any number of rows;
    that of the compiler's own float32 sums is not.

        0 1 2 3 4 5 6 7  ->  04 15 26 37  ->  0426 1537  ->  04261537
    """
    while x.shape[1] > 1:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2)))
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x[:, 0]


def uniforms(rows: SamplingRows, positions: jax.Array) -> jax.Array:
    """Three numbers for each row: [R, 3] float32, odd multiples of 2**-24 between 0 and 1."""

    def bits(seed: jax.Array, choice: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), choice)
        return jax.random.bits(jax.random.fold_in(key, position), (3,), jnp.uint32)

    integers = jax.vmap(bits)(rows.seed, rows.choice, positions) >> 9
    return (integers.astype(jnp.float32) + 0.5) * 2.0**-23


def _draw(shares: jax.Array, numbers: jax.Array) -> jax.Array:
    """An index [R] int32 with probability as its share: group, block, and entry in turn."""
    R = shares.shape[0]
    entries = shares.reshape(R, -1, _FAN)
    blocks = entries.sum(axis=-1, dtype=jnp.int32).reshape(R, -1, _FAN)
    group = pick(blocks.sum(axis=-1, dtype=jnp.int32), numbers[:, 0])
    blocks = jnp.take_along_axis(blocks, group[:, None, None], axis=1)[:, 0]
    block = group * _FAN + pick(blocks, numbers[:, 1])
    entries = jnp.take_along_axis(entries, block[:, None, None], axis=1)[:, 0]
    return block * _FAN + pick(entries, numbers[:, 2])


def pick(shares: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index [R] int32 at which the running sum of `shares` [R, n] passes `uniform` of it all.

    The running sum stays as it is where a share is 0, so no such index is picked; the last index
    stands in where all are 0.
    """
    n = shares.shape[1]
    until = jnp.triu(jnp.ones((n, n), bool))[None]
    running = jnp.where(until, shares[:, :, None], 0).sum(axis=1, dtype=jnp.int32)
    running = running.astype(jnp.float32)
    passed = running <= uniform[:, None] * running[:, -1:]
    return jnp.minimum(passed.sum(axis=-1, dtype=jnp.int32), n - 1)


def _score(logits: jax.Array, asked: jax.Array, sampled: Sampled) -> Sampled:
    """`sampled` with the log-probabilities that its rows asked for."""
    _, highest = most_likely(logits)
    total = jnp.log(_sum(weigh(logits, highest, jnp.ones_like(highest))))[:, None]
    chosen = jnp.take_along_axis(logits, sampled.tokens[:, None], axis=-1)
    logprobs = jnp.where(asked >= 0, (_fall(chosen, highest) - total)[:, 0], 0.0)

    def top() -> tuple[jax.Array, jax.Array]:
        # To top_k, -0.0 is less than 0.0.
        values, ids = jax.lax.top_k(jnp.where(logits == 0, 0.0, logits), min(TOP, logits.shape[1]))
        wanted = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :] < asked[:, None]
        beyond = ((0, 0), (0, TOP - values.shape[1]))
        return (
            jnp.pad(jnp.where(wanted, ids, -1), beyond, constant_values=-1),
            jnp.pad(jnp.where(wanted, _fall(values, highest) - total, 0.0), beyond),
        )

    untold = (sampled.top_ids, sampled.top_logprobs)
    top_ids, top_logprobs = jax.lax.cond((asked > 0).any(), top, lambda: untold)
    return Sampled(sampled.tokens, logprobs, top_ids, top_logprobs)
