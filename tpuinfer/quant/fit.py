"""Codes and scales for a weight: those that leave the least squared error, tried one by one.

Rows are worked on alone and nothing is added up over them, so that a weight has the same codes on
every mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp

from tpuinfer.quant.qarray import DTYPES, FP8_MAX, QArray
from tpuinfer.quant.schemes import Scheme

_SHRUNK = tuple(1 - 0.04 * step for step in range(9))
"""Parts of the widest range that are tried for 4-bit codes."""


def abstract(scheme: Scheme, shape: tuple[int, ...], contracted: int) -> QArray:
    """The QArray of a weight as ShapeDtypeStructs: its bytes are known before it exists.

    Args:
      scheme: fitted to the weight's rows. shape: [out..., in...]; contracted: how many of them.
    """
    outs, width = shape[:-contracted], 1
    for size in shape[-contracted:]:
        width *= size
    grouped = scheme.group is not None
    if scheme.group is not None:
        inner: tuple[int, ...] = (width // scheme.group, scheme.group)
        scales = (*outs, width // scheme.group)
    else:
        inner, scales = shape[-contracted:], outs
    scale: Any = jax.ShapeDtypeStruct(scales, jnp.float32)
    values: Any = jax.ShapeDtypeStruct((*outs, *inner), DTYPES[scheme.kind])
    return QArray(values, scale, scale if scheme.has_zero else None, scheme.kind, grouped)


def nbytes(scheme: Scheme, shape: tuple[int, ...], contracted: int) -> int:
    """Bytes of a weight under a scheme; see `abstract`."""
    return abstract(scheme, shape, contracted).nbytes


def scheme_of(weight: QArray) -> Scheme:
    """The scheme that a weight is kept by."""
    word = "int4z" if weight.kind == "int4" and weight.zero is not None else weight.kind
    return Scheme(word, weight.group)


def quantise(weight: jax.Array, scheme: Scheme, contracted: int) -> QArray:
    """A weight as a scheme keeps it.

    int8    scale = max|w| / 127; so is fp8's, with 448
    int4    w = scale * code, the code in [-8, 7]: the best of max|w| / 7, a few smaller ones, and
            the signed extreme / -8
    int4z   w = scale * code + zero: the range from least to largest in 15 steps, or a part of it

    Args:
      weight: [out..., in...], floating point. scheme: fitted to its rows.
    """
    wanted = abstract(scheme, weight.shape, contracted)
    outs = wanted.values.shape[: wanted.outs]
    inner = wanted.values.shape[wanted.outs :]
    rows = weight.astype(jnp.float32).reshape(*outs, *((inner) if wanted.grouped else (-1,)))
    if wanted.kind == "int4":
        codes, scale, zero = _four_bits(rows, scheme.has_zero)
    else:
        top = FP8_MAX if wanted.kind == "fp8" else 127.0
        scale, zero = _nonzero(jnp.abs(rows).max(axis=-1) / top), None
        codes = rows / scale[..., None]
        codes = codes if wanted.kind == "fp8" else jnp.round(codes)
        codes = jnp.clip(codes, -top, top)
    values = codes.astype(wanted.values.dtype).reshape(wanted.values.shape)
    return QArray(values, scale, zero, wanted.kind, wanted.grouped)


def _four_bits(rows: jax.Array, has_zero: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes [..., S] in [-8, 7] as float32, scale [...], zero [...] or None."""
    least, most = rows.min(axis=-1), rows.max(axis=-1)
    if has_zero:
        middle, half = (most + least) / 2, (most - least) / 2
        scales = [_nonzero(part * half * 2 / 15) for part in _SHRUNK]
        zeros = [middle + scale / 2 for scale in scales]
    else:
        furthest = jnp.where(-least > most, least, most)
        scales = [_nonzero(furthest / -8)]
        scales += [_nonzero(part * jnp.abs(furthest) / 7) for part in _SHRUNK]
        zeros = [jnp.zeros_like(least)] * len(scales)

    def codes_of(scale: jax.Array, zero: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round((rows - zero[..., None]) / scale[..., None]), -8, 7)

    best, scale, zero = None, scales[0], zeros[0]
    for one, other in zip(scales, zeros, strict=True):
        made = codes_of(one, other) * one[..., None] + other[..., None]
        error = jnp.square(made - rows).sum(axis=-1)
        if best is None:
            best = error
            continue
        better = error < best
        best = jnp.where(better, error, best)
        scale, zero = jnp.where(better, one, scale), jnp.where(better, other, zero)
    return codes_of(scale, zero), scale, zero if has_zero else None


def _nonzero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1.0, scale)


def pack(values: jax.Array) -> jax.Array:
    """[..., S] int4 -> [..., S / 2] uint8, the first of two in the low half: as files keep them."""
    pairs = values.astype(jnp.int8).reshape(*values.shape[:-1], -1, 2).astype(jnp.uint8)
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def unpack(packed: jax.Array) -> jax.Array:
    """Undo `pack`."""
    low = (packed << 4).astype(jnp.int8) >> 4
    high = packed.astype(jnp.int8) >> 4
    both = jnp.stack((low, high), axis=-1)
    return both.reshape(*packed.shape[:-1], -1).astype(jnp.int4)
