"""Sums over the model axis: one function, so that every row is treated alike.

An all-reduce may cut its buffer by position, and then the order of summation, hence the bits,
depends on which slot a row sits in. Cutting along embed instead (reduce-scatter, then all-gather:
the same bytes) gives every row the same order.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

Mode = Literal["scatter", "exact"]
MeshAxis = str | tuple[str, ...] | None

_TPU_PIECE = 256
"""Columns. Of a reduce-scatter in smaller or odd pieces, or of more than two dimensions, the TPU
compiler makes an all-reduce."""


def reduce_model(partial: jax.Array, mesh_axis: MeshAxis, mode: Mode = "scatter") -> jax.Array:
    """Sum the partial results of all devices along `mesh_axis`; call it inside shard_map.

    Args:
      partial: [..., D], this device's share of the sum.
      mesh_axis: one, or several in a tuple.
      mode: "scatter" sums pieces cut along D; "exact" gathers all and sums in device order.

    Returns:
      [..., D], the same on every device of the axis.

        4 devices, D = 8      device 0    device 1    device 2    device 3
        psum_scatter          D 0:2       D 2:4       D 4:6       D 6:8     each the sum over all
        all_gather            D 0:8 everywhere
    """
    if mode == "exact":
        return _exact(partial, mesh_axis)
    even = divides(partial.shape[-1], jax.lax.axis_size(mesh_axis))
    return jax.lax.platform_dependent(
        partial,
        tpu=functools.partial(_whole, mesh_axis=mesh_axis, unit=_TPU_PIECE),
        default=functools.partial(_whole if even else _exact, mesh_axis=mesh_axis),
    )


def padded(columns: int, devices: int) -> int:
    """Columns that a sum over `devices` carries on TPUs: whole pieces.

    >>> padded(4096, 8), padded(2880, 8)
    (4096, 4096)
    """
    unit = devices * _TPU_PIECE
    return -(-columns // unit) * unit


def divides(columns: int, devices: int, platform: str = "") -> bool:
    """Whether `columns` can be summed in as many pieces as there are devices, none filled up."""
    return columns % (devices * (_TPU_PIECE if platform == "tpu" else 1)) == 0


def scatter(partial: jax.Array, mesh_axis: MeshAxis) -> jax.Array:
    """The first half of `reduce_model`: each device gets one piece of the sum, [..., D / n].

    The columns must divide, as `divides` says.
    """
    *lead, size = partial.shape
    flat = partial.reshape(-1, size)
    piece = jax.lax.psum_scatter(flat, mesh_axis, scatter_dimension=1, tiled=True)
    return piece.reshape(*lead, piece.shape[-1])


def _whole(partial: jax.Array, mesh_axis: MeshAxis, unit: int = 1) -> jax.Array:
    """Each device sums one piece, a multiple of `unit` columns (zeros fill it up); all get all."""
    *lead, size = partial.shape
    flat = partial.reshape(-1, size)
    if fill := -size % (jax.lax.axis_size(mesh_axis) * unit):
        flat = jnp.pad(flat, [(0, 0), (0, fill)])
    whole = jax.lax.all_gather(scatter(flat, mesh_axis), mesh_axis, axis=1, tiled=True)
    return whole[:, :size].reshape(*lead, size)


def _exact(partial: jax.Array, mesh_axis: MeshAxis) -> jax.Array:
    parts = jax.lax.all_gather(partial, mesh_axis, axis=0)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.astype(partial.dtype)
