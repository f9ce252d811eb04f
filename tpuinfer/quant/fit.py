"""Codes and scales for a weight: those that leave the least squared error, tried one by one.

Rows are worked on alone and nothing is added up over them, so that a weight has the same codes on
every mesh. What is tried is tried in a loop: unrolled, it would hold each try's float32 weight, and
an eager call would round otherwise than a compiled one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tpuinfer.quant.qarray import DTYPES, FP8_MAX, QArray, dequantise
from tpuinfer.quant.schemes import Scheme

_SHRUNK = tuple(1 - 0.04 * step for step in range(9))
"""Parts of the widest range that are tried for 4-bit codes."""

_EXPONENT = 0x7F800000
"""The bits of a float32 that make its power of two."""


def abstract(
    scheme: Scheme, shape: tuple[int, ...], contracted: int, *, packed: bool = False
) -> QArray:
    """The QArray of a weight as ShapeDtypeStructs: its bytes are known before it exists.

    Args:
      scheme: fitted to the weight's rows. shape: [out..., in...]; contracted: how many of them.
      packed: 4-bit codes are kept in pairs.
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
    dtype = DTYPES[scheme.kind]
    if packed and scheme.kind == "int4":
        inner, dtype = (*inner[:-1], inner[-1] // 2), jnp.uint8
    values: Any = jax.ShapeDtypeStruct((*outs, *inner), dtype)
    return QArray(values, scale, scale if scheme.has_zero else None, scheme.kind, grouped)


def nbytes(scheme: Scheme, shape: tuple[int, ...], contracted: int) -> int:
    """Bytes of a weight under a scheme; see `abstract`."""
    return abstract(scheme, shape, contracted).nbytes


def scheme_of(weight: QArray) -> Scheme:
    """The scheme that a weight is kept by."""
    word = "int4z" if weight.kind == "int4" and weight.zero is not None else weight.kind
    return Scheme(word, weight.group)


def same_codes(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes keep a weight in the same way; they may multiply it differently."""
    alike = DTYPES[one.kind] == DTYPES[other.kind] and one.has_zero == other.has_zero
    return alike and one.group == other.group


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
    inner = wanted.values.shape[wanted.outs :] if wanted.grouped else (-1,)
    rows = weight.reshape(*outs, *inner)
    if wanted.kind == "int4":
        codes, scale, zero = _four_bits(rows.astype(jnp.float32), scheme.has_zero)
    else:
        top = FP8_MAX if wanted.kind == "fp8" else 127.0
        scale, zero = _nonzero(jnp.abs(rows).max(axis=-1).astype(jnp.float32) / top), None
        codes = rows.astype(jnp.float32) / scale[..., None]
        codes = codes if wanted.kind == "fp8" else jnp.round(codes)
        codes = jnp.clip(codes, -top, top)
    values = codes.astype(wanted.values.dtype).reshape(wanted.values.shape)
    return QArray(values, scale, zero, wanted.kind, wanted.grouped)


def requantise(weight: QArray, scheme: Scheme, shape: tuple[int, ...]) -> QArray:
    """A quantised weight as another scheme keeps it; where the codes are the same, so are the bits.

    Args:
      shape: the weight's, [out..., in...].
    """
    if same_codes(scheme_of(weight), scheme):
        return dataclasses.replace(weight, kind=scheme.kind)
    return quantise(dequantise(weight).reshape(shape), scheme, len(shape) - weight.outs)


def _four_bits(rows: jax.Array, has_zero: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes [..., S] in [-8, 7] as float32, scale [...], zero [...] or None.

    Worked on in units of a row's own power of two, so that no square overflows or vanishes.
    """
    unit = _power_of_two(jnp.abs(rows).max(axis=-1))
    rows = rows / unit[..., None]
    least, most = rows.min(axis=-1), rows.max(axis=-1)
    furthest = jnp.where(-least > most, least, most)

    def codes_of(scale: jax.Array, zero: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round((rows - zero[..., None]) / scale[..., None]), -8, 7)

    def attempt(steps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The scale by which a row's range is so many steps, and its zero."""
        if has_zero:
            scale = (most - least) / steps
            return _nonzero(scale), (most + least) / 2 + scale / 2
        signed = jnp.where(steps < 0, furthest, jnp.abs(furthest))
        return _nonzero(signed / steps), jnp.zeros_like(least)

    def better(
        found: tuple[jax.Array, jax.Array, jax.Array], steps: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        least_error, *kept = found
        scale, zero = attempt(steps)
        made = codes_of(scale, zero) * scale[..., None] + zero[..., None]
        error = jnp.square(made - rows).sum(axis=-1)
        wins = error < least_error
        scale, zero = (jnp.where(wins, *pair) for pair in zip((scale, zero), kept, strict=True))
        return (jnp.minimum(error, least_error), scale, zero), None

    whole = 15 if has_zero else 7
    steps = [whole / part for part in _SHRUNK] if has_zero else [-8, *(7 / p for p in _SHRUNK)]
    nothing = jnp.zeros_like(least)
    (_, scale, zero), _ = jax.lax.scan(
        better, (nothing + jnp.inf, nothing, nothing), jnp.asarray(steps, jnp.float32)
    )
    return codes_of(scale, zero), scale * unit, zero * unit if has_zero else None


def _power_of_two(values: jax.Array) -> jax.Array:
    """The largest that is not above each of these, float32 and not negative; of 0 it is 1.

    At most 2 ** 126: what would divide by more multiplies by a number that is taken for 0.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int32) & _EXPONENT
    return _nonzero(jax.lax.bitcast_convert_type(jnp.minimum(bits, 253 << 23), jnp.float32))


def _nonzero(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1.0, scale)
