"""What a dispatch sends back to the host, packed so that it takes one transfer.

packed [..., R, 2]        token, bits of its log-probability
top    [..., R, 2, TOP]   ids, bits of their log-probabilities; read only when a row asked

A prefill also sends back the scores of the prompts' own tokens, read only when a row asked.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import NDArray

from tpuinfer.ops.sampling import TOP, Sampled


@struct.dataclass
class Output:
    """Tokens with their log-probabilities; both int32, [n, R, 2] and [n, R, 2, TOP]."""

    packed: jax.Array
    top: jax.Array


@struct.dataclass
class Prefilled:
    """What a prefill of R chunks of C tokens sends back.

    Attributes:
      first: the first tokens of rows whose prompt ends, with n = 1.
      prompt: for every position of the chunks the token that follows in the prompt, [R, C, ...].
    """

    first: Output
    prompt: Output


class Tokens(NamedTuple):
    """The same on the host: tokens and logprobs [n, R], top_ids and top_logprobs [n, R, TOP]."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32] | None
    top_logprobs: NDArray[np.float32] | None


def pack(sampled: Sampled, live: jax.Array) -> Output:
    """One step's outcome, [R, ...]; rows that are not live give token -1."""
    tokens = jnp.where(live, sampled.tokens, -1)
    return Output(
        jnp.stack([tokens, _bits(sampled.logprobs)], axis=-1),
        jnp.stack([sampled.top_ids, _bits(sampled.top_logprobs)], axis=-2),
    )


def nothing(steps: int, rows: int) -> Output:
    """The outcome of `steps` steps before any was made; no token has a log-probability."""
    return Output(
        jnp.full((steps, rows, 2), -1, jnp.int32), jnp.full((steps, rows, 2, TOP), -1, jnp.int32)
    )


def unpack(packed: Any, top: Any | None) -> Tokens:
    """What arrived on the host, taken apart without a copy."""
    tokens, logprobs = packed[..., 0], packed.view(np.float32)[..., 1]
    if top is None:
        return Tokens(tokens, logprobs, None, None)
    return Tokens(tokens, logprobs, top[..., 0, :], top.view(np.float32)[..., 1, :])


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
