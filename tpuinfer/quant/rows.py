"""Keys and values of a ring: codes, and one scale for each row of a head."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tpuinfer.quant.qarray import FP8_MAX

RINGS = {"int8": "int8", "fp8": "float8_e4m3fn"}
"""What a user calls it -> the dtype of its codes."""


class Rounded(NamedTuple):
    """Rows as a ring keeps them: row = values * scale.

    Attributes:
      values: [..., H] in the ring's dtype. scale: [...] float32; None = the ring keeps rows as
        they are.
    """

    values: jax.Array
    scale: jax.Array | None


def is_codes(dtype: Any) -> bool:
    """Whether a ring of this dtype keeps codes and scales."""
    return jnp.dtype(dtype).name in RINGS.values()


def round_rows(rows: jax.Array, dtype: Any) -> Rounded:
    """Rows [..., H] for a ring of a dtype; each is rounded with a scale of its own, or cast."""
    if not is_codes(dtype):
        return Rounded(rows.astype(dtype), None)
    exact = rows.astype(jnp.float32)
    whole = jnp.dtype(dtype) == jnp.dtype(jnp.int8)
    top = 127.0 if whole else FP8_MAX
    scale = jnp.abs(exact).max(axis=-1) / top
    scale = jnp.where(scale == 0, 1.0, scale)
    codes = exact / scale[..., None]
    codes = jnp.round(codes) if whole else jnp.clip(codes, -top, top)
    return Rounded(codes.astype(dtype), scale)


def stored(dtype: Any) -> Any:
    """What an array of a ring's codes has as its dtype: float8 lies there as bytes.

    XLA:CPU would widen a ring of float8, whole, to write to it or to read a block of it.
    """
    kind = jnp.dtype(dtype)
    return jnp.dtype(jnp.uint8) if kind == jnp.dtype(jnp.float8_e4m3fn) else kind


def kept(dtype: Any) -> Any:
    """Undo `stored`."""
    kind = jnp.dtype(dtype)
    return jnp.dtype(jnp.float8_e4m3fn) if kind == jnp.dtype(jnp.uint8) else kind


def as_stored(codes: jax.Array) -> jax.Array:
    """Codes as a ring's array has them, bit by bit."""
    return jax.lax.bitcast_convert_type(codes, stored(codes.dtype))


def as_codes(array: jax.Array) -> jax.Array:
    """Undo `as_stored`."""
    return jax.lax.bitcast_convert_type(array, kept(array.dtype))
