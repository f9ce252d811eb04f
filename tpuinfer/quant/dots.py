"""Activations times a QArray; which form of the product suits the platform is decided here.

    default   codes are widened inside the dot, which reads them as they are kept; scales after it.
              Measured as compiled for TPUs (BUILD_NOTES.md), groups of 64 best of all groups
    cpu       XLA's CPU compiler widens the whole weight first (four times slower than bf16), but
              has fast dots of int8 with int8: so a few rows of activations become int8 as well,
              in as many planes as their dtype has bits for, and each plane is multiplied exactly

A row of bf16, in two planes of 7 bits and a sign, one scale a row:

    x = s * (a + b / 254)        a, b in [-127, 127]        x . w = s * (a . w + (b . w) / 254)

The sums of int8 products are exact, so a row's bits depend on nothing but the row.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import layout as memory

from tpuinfer.quant.qarray import QArray, dequantise

WIDE = 32
"""Tokens of a row in a call from which widening the weight costs less than planes of rows."""

_PLANES = {jnp.dtype(jnp.bfloat16): 2, jnp.dtype(jnp.float16): 2, jnp.dtype(jnp.float32): 3}
_STEP = 254.0

_TILE, _LANES = 8, 128
"""What TPUs keep together: a dimension that does not fill lanes is not the fastest."""

_LAST = (((1,), (1,)), ((), ()))


def contract(x: jax.Array, weight: QArray, tokens: int = 1) -> jax.Array:
    """[R, W] times the weight's rows -> [R, F] float32, F = all that it makes.

    Args:
      tokens: of one row of the batch in this call; never how many rows there are.
    """
    x = x.reshape(x.shape[0], -1)
    if weight.kind == "w8a8":
        return _int8(x, weight.flat(), planes=1)
    result: jax.Array = jax.lax.platform_dependent(
        x,
        weight,
        cpu=lambda x, weight: _rows_cpu(x, weight.flat(), tokens),
        default=functools.partial(_default, tokens=tokens),
    )
    return result


def contract_each(x: jax.Array, weight: QArray) -> jax.Array:
    """[X, E, F] times an expert's [E, D, F] -> [E, X, D] float32."""
    over_experts = jax.vmap(lambda rows, w: contract(rows, w, WIDE), in_axes=(1, 0), out_axes=0)
    result: jax.Array = over_experts(x, weight)
    return result


def round_activations(x: jax.Array, planes: int) -> tuple[list[jax.Array], jax.Array]:
    """[R, W] -> planes of int8 [R, W] and a scale [R, 1]: x = scale * (p0 + p1 / 254 + ...)."""
    rest = x.astype(jnp.float32)
    scale = jnp.abs(rest).max(axis=-1, keepdims=True) / 127
    scale = jnp.where(scale == 0, 1.0, scale)
    rest, made = rest / scale, []
    for _ in range(planes):
        plane = jnp.round(rest)
        made.append(plane.astype(jnp.int8))
        rest = (rest - plane) * _STEP
    return made, scale


def _default(x: jax.Array, weight: QArray, tokens: int) -> jax.Array:
    weight = weight.unpacked()  # of codes in pairs, which are the CPU's, this is traced and no more
    return _groups(x, weight, tokens) if weight.grouped else _rows(x, weight.flat())


def _rows(x: jax.Array, weight: QArray) -> jax.Array:
    """One scale a row: it waits until the sums are there."""
    made = _dot(x, weight.values.astype(x.dtype)) * weight.scale[None]
    if weight.zero is not None:
        made = made + _sums(x)[:, None] * weight.zero[None]
    return made


def _groups(x: jax.Array, weight: QArray, tokens: int) -> jax.Array:
    """Codes in groups, as the TPU compiler reads them: once, and in the order that they lie in.

    That order goes by the shape. Left to itself the compiler prefers another one in a loop, and
    copies the codes from one to the other at each step.

        groups below 128    [G, S, F], F the fastest: a scale lies below the codes that it scales
        128 and more        [F, G, S], or [G, F, S] where G fills no tiles: scales would have to be
                            spread along a group, which takes four times as long as the dot; sums
                            of groups are scaled instead, [G, R, F], unless the tokens are so many
                            that those are larger than the weight
    """
    *outs, count, size = weight.values.shape
    order, last = list(range(len(outs) + 2)), len(outs) - 1
    if size % _LANES:
        order.append(order.pop(last))
        return _dequantised(x, _kept_in(weight, order))
    if tokens >= WIDE:
        return _dequantised(x, weight)
    if count % _TILE == 0:
        weight = _kept_in(weight, order)
    return _scaled_sums(x, weight.flat())


def _kept_in(weight: QArray, order: list[int]) -> QArray:
    """The same, its codes in memory in this order of dimensions, the slowest first."""
    values = memory.with_layout_constraint(weight.values, memory.Layout(tuple(order)))
    return dataclasses.replace(weight, values=values)


def _dequantised(x: jax.Array, weight: QArray) -> jax.Array:
    """On the way into the dot; [out..., G, S] as they are kept, for made flat they are copied.

    The barrier keeps the compiler from making them flat itself, to have the result so.
    """
    outs = weight.outs
    made = weight.values.astype(jnp.float32) * weight.scale[..., None]
    if weight.zero is not None:
        made = made + weight.zero[..., None]
    product = jax.lax.dot_general(
        x.reshape(x.shape[0], *weight.values.shape[outs:]),
        made.astype(x.dtype),
        (((1, 2), (outs, outs + 1)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    if outs > 1:
        product = jax.lax.optimization_barrier(product)
    return product.reshape(x.shape[0], -1)


def _scaled_sums(x: jax.Array, weight: QArray) -> jax.Array:
    groups = x.reshape(x.shape[0], *weight.values.shape[1:])
    parts = jax.lax.dot_general(  # [G, R, F]
        groups,
        weight.values.astype(x.dtype),
        (((2,), (2,)), ((1,), (1,))),
        preferred_element_type=jnp.float32,
    )
    made = (parts * weight.scale.T[:, None, :]).sum(axis=0)
    if weight.zero is not None:
        made = made + _dot(_sums(groups), weight.zero)
    return made


def _rows_cpu(x: jax.Array, weight: QArray, tokens: int) -> jax.Array:
    if weight.kind == "int8" and not weight.grouped and tokens < WIDE:
        return _int8(x, weight, _PLANES[x.dtype])
    # Widened weights follow from nothing that a call is given: without the barrier the compiler
    # would widen those of all layers ahead of the first.
    x, weight = jax.lax.optimization_barrier((x, weight))
    if weight.grouped:
        return _dot(x, dequantise(weight).astype(x.dtype))
    return _rows(x, weight)


def _int8(x: jax.Array, weight: QArray, planes: int) -> jax.Array:
    """Products of int8 with int8, the planes of a row one below the other in one dot."""
    rows = x.shape[0]
    parts, scale = round_activations(x, planes)
    sums = _dot(jnp.concatenate(parts), weight.values, jnp.int32).astype(jnp.float32)
    made = sums[(planes - 1) * rows :]
    for plane in range(planes - 2, -1, -1):
        made = sums[plane * rows : (plane + 1) * rows] + made / _STEP
    made = made * scale * weight.scale[None]
    if weight.zero is not None:
        made = made + _sums(x)[:, None] * weight.zero[None]
    return made


def _dot(x: jax.Array, weight: jax.Array, kind: jnp.dtype | type = jnp.float32) -> jax.Array:
    return jax.lax.dot_general(x, weight, _LAST, preferred_element_type=kind)


def _sums(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).sum(axis=-1)
