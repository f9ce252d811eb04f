"""What an encoder does over whole texts: attention in both directions, and pooling.

Every sum runs over one row alone, and what lies beyond a row's length is masked in scores and in
values, so a row's bits depend on nothing but the row and the width it is padded to.

Letters: R rows, T tokens per row, N heads, H head dim, D embed.
"""

import jax
import jax.numpy as jnp

from tpuinfer.model_config import PoolingMode

_NEG = -1e30
"""Masked score. Finite: a row without tokens must not make NaN."""

_LEAST_LENGTH = 1e-12
"""A vector shorter than this is not scaled up to length 1."""


def attend_both_ways(q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array) -> jax.Array:
    """Attention of every token to all tokens of its row (arXiv:1706.03762).

    Args:
      q, k, v: [R, T, N, H]. length: [R] int32, how many of the T tokens are real.

    Returns:
      [R, T, N, H] in q's dtype; what stands at padding means nothing, but is finite.
    """
    real = _real(length, k.shape[1])
    scores = jnp.einsum(
        "RTNH,RSNH->RNTS", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    scores = jnp.where(real[:, None, None, :], scores, _NEG)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    clean = jnp.where(real[:, :, None, None], v, jnp.zeros((), v.dtype))
    out = jnp.einsum("RNTS,RSNH->RTNH", weights, clean, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)


def pool(x: jax.Array, length: jax.Array, mode: PoolingMode) -> jax.Array:
    """One vector of each row's tokens: [R, T, D] -> [R, D] float32.

    Every mode is a weighted sum, and a dot, exact for float32 values. XLA:CPU runs a plain sum (or
    the choice of one token) together with the norm before it, in parts of a row as many as it has
    threads: bits then depended on the row (4 rows of 384 numbers, 32 threads).

    Args:
      length: [R] int32, how many of the T tokens are real; a row of 0 gives something finite.
    """
    real = _real(length, x.shape[1])
    clean = jnp.where(real[:, :, None], x.astype(jnp.float32), 0.0)
    shares = jnp.where(real, _shares(length[:, None], x.shape[1], mode), 0.0)
    total = jnp.einsum("RT,RTD->RD", shares, clean, precision=jax.lax.Precision.HIGHEST)
    count = jnp.maximum(length, 1).astype(jnp.float32)[:, None]
    if mode == "mean":
        return total / count
    if mode == "weighted_mean":
        return total / (count * (count + 1) / 2)
    return total / jnp.sqrt(count) if mode == "mean_sqrt_len" else total


def _shares(length: jax.Array, width: int, mode: PoolingMode) -> jax.Array:
    """What each token's vector is multiplied by before they are added up: [R, T] float32."""
    index = jnp.arange(width, dtype=jnp.int32)[None, :]
    if mode == "cls":
        return (index == 0).astype(jnp.float32)
    if mode == "last":
        return (index == length - 1).astype(jnp.float32)
    if mode == "weighted_mean":
        return (index + 1).astype(jnp.float32)
    return jnp.ones((1, width), jnp.float32)


def normalise(x: jax.Array) -> jax.Array:
    """Each row scaled to length 1: [R, D] float32."""
    size = jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))
    return x / jnp.maximum(size, _LEAST_LENGTH)


def _real(length: jax.Array, width: int) -> jax.Array:
    """[R, T] bool: which tokens are no padding."""
    return jnp.arange(width, dtype=jnp.int32)[None, :] < length[:, None]
