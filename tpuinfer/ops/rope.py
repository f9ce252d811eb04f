"""Rotary position embedding (arXiv:2104.09864) in the half-rotation layout of Hugging Face."""

import jax
import jax.numpy as jnp
import numpy as np

_PAGE = 4096
"""Positions that are multiplied as they are."""


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for positions.

    Args:
      positions: [B, T] int32.

    Returns:
      Two arrays [B, T, 1, H/2] float32; frequency i turns by theta ** (-2 i / H) per position.

    A float32 product of a large position and a frequency near 1 is off by a large part of a turn,
    so whole pages of positions are turned by an angle that is reduced beforehand: a request that
    rolls through millions of tokens keeps its sense of distance.
    """
    exponents = np.arange(0, head_dim, 2) / head_dim
    exact = theta**-exponents
    page = np.mod(_PAGE * exact + np.pi, 2 * np.pi).astype(np.float32) - np.float32(np.pi)
    frequencies = jnp.asarray(1.0 / theta ** exponents.astype(np.float32))
    within = (positions % _PAGE).astype(jnp.float32)[:, :, None, None]
    pages = (positions // _PAGE).astype(jnp.float32)[:, :, None, None]
    angles = within * frequencies[None, None, None, :] + pages * page[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate [B, T, N, H]: pair (i, i + H/2) turns by its angle; float32 inside."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
