"""Rotary position embedding (arXiv:2104.09864) in the half-rotation layout of Hugging Face."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tpuinfer.model_config import Rope

_PAGE = 4096
"""Positions that are multiplied as they are."""


def rope_angles(positions: jax.Array, head_dim: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for positions.

    Args:
      positions: [B, T] int32.

    Returns:
      Two arrays [B, T, 1, R/2] float32, R the dimensions that turn; frequency i turns by
      theta ** (-2 i / R) per position, scaled as `rope` says.

    A float32 product of a large position and a frequency near 1 is off by a large part of a turn,
    so whole pages of positions are turned by an angle that is reduced beforehand: a request that
    rolls through millions of tokens keeps its sense of distance.
    """
    size = rope.dim or head_dim
    if rope.kind == "dynamic":
        angles = _dynamic(positions, size, rope)
    else:
        exact = frequencies(rope, size, np.float64)
        page = np.mod(_PAGE * exact + np.pi, 2 * np.pi).astype(np.float32) - np.float32(np.pi)
        within = (positions % _PAGE).astype(jnp.float32)[:, :, None, None]
        pages = (positions // _PAGE).astype(jnp.float32)[:, :, None, None]
        near = jnp.asarray(frequencies(rope, size, np.float32))
        angles = within * near[None, None, None, :] + pages * page[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    factor = attention_factor(rope)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def apply_rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate [B, T, N, H]: of the first R dimensions pair (i, i + R/2) turns by its angle.

    The others stay as they are. Float32 inside.
    """
    cos, sin = angles
    size = 2 * cos.shape[-1]
    first, second = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    parts = [part.astype(x.dtype) for part in turned]
    return jnp.concatenate([*parts, x[..., size:]], axis=-1)


def frequencies(rope: Rope, size: int, dtype: Any) -> NDArray[Any]:
    """Turns per position, in radians: [size / 2]; of every kind but "dynamic".

    Args:
      dtype: float32 rounds where Hugging Face's models do; float64 is exact.
    """
    plain = 1 / np.power(dtype(rope.theta), np.arange(0, size, 2, dtype=dtype) / dtype(size))
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / dtype(rope.factor)
    if rope.kind == "llama3":
        return _llama3(plain, rope, dtype)
    if rope.kind == "yarn":
        return _yarn(plain, rope, size, dtype)
    assert rope.kind == "longrope", rope.kind
    return plain / np.asarray(rope.short, dtype)


def attention_factor(rope: Rope) -> float:
    """What cosines and sines are multiplied by, so that scores stay as sharp as in training."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.kind == "yarn":
        if rope.mscale and rope.mscale_all_dim:
            return _yarn_scale(rope.factor, rope.mscale) / _yarn_scale(
                rope.factor, rope.mscale_all_dim
            )
        return _yarn_scale(rope.factor, 1.0)
    if rope.kind == "longrope" and rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(_original(rope)))
    return 1.0


def _original(rope: Rope) -> int:
    assert rope.original is not None, f"{rope.kind} needs the context it was trained with"
    return rope.original


def _llama3(plain: NDArray[Any], rope: Rope, dtype: Any) -> NDArray[Any]:
    """Llama 3.1's rule (arXiv:2407.21783): long wavelengths stretch, short ones stay.

    Between the two, the share that stays grows linearly with the turns over the original context.
    """
    turns = _original(rope) * plain / dtype(2 * np.pi)
    stays = np.clip((turns - dtype(rope.low)) / dtype(rope.high - rope.low), 0, 1)
    return (1 - stays) * plain / dtype(rope.factor) + stays * plain


def _yarn(plain: NDArray[Any], rope: Rope, size: int, dtype: Any) -> NDArray[Any]:
    """YaRN (arXiv:2309.00071), "NTK-by-parts": a ramp over dimensions between two turn counts."""

    def dimension(turns: float) -> float:
        wavelength = _original(rope) / (turns * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = dimension(rope.high), dimension(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = (last - first) or 0.001
    stretched = np.clip((np.arange(size // 2, dtype=dtype) - dtype(first)) / dtype(width), 0, 1)
    return plain / dtype(rope.factor) * stretched + plain * (1 - stretched)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _dynamic(positions: jax.Array, size: int, rope: Rope) -> jax.Array:
    """Angles whose base grows with the length of the text so far ("dynamic NTK").

    Beyond the original context the base is that of a text which ends at the position itself: what
    generating token by token gives, however the text was cut into chunks.
    """
    original = _original(rope)
    length = jnp.maximum(positions + 1, original).astype(jnp.float32)
    stretch = rope.factor * length / original - (rope.factor - 1)
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    plain = frequencies(Rope(rope.theta), size, np.float32)
    shrink = jnp.exp(-jnp.log(stretch)[:, :, None] * (exponents * size / (size - 2))[None, None])
    angles = positions.astype(jnp.float32)[:, :, None] * (plain[None, None] * shrink)
    return angles[:, :, None, :]
