"""Normalisations."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """RMSNorm (arXiv:1910.07467), computed in float32, returned in x's dtype.

    Args:
      x: [..., D]. weight: [D].
    """
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    weight = jnp.expand_dims(weight.astype(x.dtype), range(x.ndim - 1))
    return (wide * scale).astype(x.dtype) * weight
