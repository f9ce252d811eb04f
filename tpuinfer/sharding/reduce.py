"""Sums over the model axis: one function, so that every row is treated alike.

An all-reduce may cut its buffer by position, and then the order of summation, hence the bits,
depends on which slot a row sits in. Cutting along embed instead (reduce-scatter, then all-gather:
the same bytes) gives every row the same order.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from tpuinfer.sharding.mesh import platform_of

Mode = Literal["scatter", "exact"]
MeshAxis = str | tuple[str, ...] | None

_TPU_PIECE = 256
"""Columns. Of a reduce-scatter in smaller or odd pieces, or of more than two dimensions, the TPU
compiler makes an all-reduce."""

_NEAR = 4


def reduce_model(
    partial: jax.Array, mesh_axis: MeshAxis, mode: Mode = "scatter", near: int = 1
) -> jax.Array:
    """Sum the partial results of all devices along `mesh_axis`; call it inside shard_map.

    Args:
      partial: [..., D], this device's share of the sum.
      mesh_axis: one, or several in a tuple.
      mode: "scatter" sums pieces cut along D; "exact" gathers all and sums in device order.
      near: as `neighbours` says.

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
        tpu=functools.partial(_whole, mesh_axis=mesh_axis, unit=_TPU_PIECE, near=near),
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


def neighbours(mesh: Mesh | AbstractMesh, names: Sequence[str]) -> int:
    """How many devices next to each other sum last, where a sum goes in two stages; 1 = in one.

    Of a reduce-scatter over all devices of a square or cubic slice (v5e:4x4, v5p:2x2x2; not
    v5e:2x4) the TPU compiler makes an all-reduce, however large the pieces; over a part of them it
    does not.
    """
    devices = math.prod(mesh.shape[name] for name in names)
    if isinstance(mesh, AbstractMesh) or platform_of(mesh) != "tpu" or devices < mesh.size:
        return 1
    deep = any(device.coords[2] for device in mesh.devices.flat)
    if devices < 8 or (devices == 8 and not deep):
        return 1
    return next(near for near in (_NEAR, 2, 1) if devices % near == 0 and near < devices // 2)


def scatter(partial: jax.Array, mesh_axis: MeshAxis, near: int = 1) -> jax.Array:
    """The first half of `reduce_model`: each device gets one piece of the sum, [..., D / n].

    The columns must divide, as `divides` says.

        8 devices, near = 2   device 0    1           2           ...
        over 0, 2, 4, 6       D 0:4 of 0, 2, 4, 6     (and of 1, 3, 5, 7 on device 1)
        over 0, 1             D 0:2       D 2:4 of all
    """
    *lead, size = partial.shape
    flat = partial.reshape(-1, size)
    names = mesh_axis if isinstance(mesh_axis, tuple) else (mesh_axis,)
    if near == 1:
        flat = _piece(flat, mesh_axis)
    elif len(names) > 1:
        for name in names:
            flat = _piece(flat, name)
    else:
        numbers = range(jax.lax.axis_size(mesh_axis))
        far = [list(numbers[first::near]) for first in range(near)]
        flat = _piece(flat, mesh_axis, far)
        flat = _piece(flat, mesh_axis, [list(numbers[at : at + near]) for at in numbers[::near]])
    return flat.reshape(*lead, flat.shape[-1])


def _piece(
    flat: jax.Array, mesh_axis: MeshAxis, groups: list[list[int]] | None = None
) -> jax.Array:
    piece: jax.Array = jax.lax.psum_scatter(
        flat, mesh_axis, scatter_dimension=1, tiled=True, axis_index_groups=groups
    )
    return piece


def _whole(partial: jax.Array, mesh_axis: MeshAxis, unit: int = 1, near: int = 1) -> jax.Array:
    """Each device sums one piece, a multiple of `unit` columns (zeros fill it up); all get all."""
    *lead, size = partial.shape
    flat = partial.reshape(-1, size)
    if fill := -size % (jax.lax.axis_size(mesh_axis) * unit):
        flat = jnp.pad(flat, [(0, 0), (0, fill)])
    whole = jax.lax.all_gather(scatter(flat, mesh_axis, near), mesh_axis, axis=1, tiled=True)
    return whole[:, :size].reshape(*lead, size)


def _exact(partial: jax.Array, mesh_axis: MeshAxis) -> jax.Array:
    parts = jax.lax.all_gather(partial, mesh_axis, axis=0)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.astype(partial.dtype)
