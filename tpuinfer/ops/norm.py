"""Normalisations."""

import jax
import jax.numpy as jnp


def rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, *, offset: float = 0.0, wide: bool = False
) -> jax.Array:
    """RMSNorm (arXiv:1910.07467), computed in float32, returned in x's dtype.

    Args:
      x: [..., D]. weight: the last dimensions of x, over the last of which the mean is taken.
      offset: added to the weight.
      wide: multiply by the weight before rounding to x's dtype, not after.
    """
    exact = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(exact), axis=-1, keepdims=True) + eps)
    return scaled(x, exact * scale, weight, offset=offset, wide=wide)


def scaled(
    x: jax.Array, normed: jax.Array, weight: jax.Array, *, offset: float = 0.0, wide: bool = False
) -> jax.Array:
    """`normed` (float32) times weight + offset in x's dtype; `wide` as for `rms_norm`."""
    between = jnp.float32 if wide else x.dtype
    weight = weight.astype(between) + offset if offset else weight.astype(between)
    weight = jnp.expand_dims(weight, range(x.ndim - weight.ndim))
    return (normed.astype(between) * weight).astype(x.dtype)


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm (arXiv:1607.06450), computed in float32, returned in x's dtype.

    Args:
      x: [..., D]. weight, bias: [D].
    """
    exact = x.astype(jnp.float32)
    centred = exact - jnp.mean(exact, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    lead = range(x.ndim - 1)
    weight, bias = (jnp.expand_dims(one.astype(jnp.float32), lead) for one in (weight, bias))
    return (centred * scale * weight + bias).astype(x.dtype)
