"""Matmuls with weights kept in Hugging Face's order: output dimensions first, input last."""

import math

import jax
import jax.numpy as jnp


def split_equation(equation: str) -> tuple[int, int]:
    """How many dimensions an equation contracts, and how many it makes.

    >>> split_equation("BTD,NHD->BTNH")
    (1, 2)
    >>> split_equation("BTNH,DNH->BTD")
    (2, 1)
    """
    left, result = equation.split("->")
    x, w = left.split(",")
    made = [letter for letter in w if letter in result]
    contracted = [letter for letter in w if letter not in result]
    lead = [letter for letter in x if letter not in contracted]
    if (
        list(w) != made + contracted
        or list(x) != lead + contracted
        or list(result) != lead + made
        or not contracted
    ):
        raise ValueError(f"{equation!r} is not of the form 'lead in, out in -> lead out'")
    return len(contracted), len(made)


def einsum(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """X times weight, accumulated in float32, returned in x's dtype.

    Run as one two-dimensional `[rows, in] x [out, in]` dot: the form that XLA:CPU has a fast path
    for, and free elsewhere.

    Args:
      equation: such as "BTD,FD->BTF"; the contracted letters end both operands.
      weight: cast to x's dtype when it differs.
    """
    contracted, _ = split_equation(equation)
    lead, out = x.shape[:-contracted], weight.shape[:-contracted]
    width = math.prod(weight.shape[-contracted:])
    flat = jax.lax.dot_general(
        x.reshape(-1, width),
        weight.reshape(-1, width).astype(x.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return flat.astype(x.dtype).reshape(*lead, *out)


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a [V, D] table: [...] int32 ids in [0, V) -> [..., D], in the table's dtype.

    XLA:CPU converts a bf16 table to float32, whole, before it gathers from it; the same bits taken
    as integers are left where they are. (On a TPU it is the other way round: the bits are copied.)
    In a loop the table would be turned into integers ahead of it, again whole; the barrier ties
    that to the ids, which change with every turn.
    """

    def plain(table: jax.Array, ids: jax.Array) -> jax.Array:
        return table[ids]

    def as_integers(table: jax.Array, ids: jax.Array) -> jax.Array:
        table, ids = jax.lax.optimization_barrier((table, ids))
        bits = jax.lax.bitcast_convert_type(table, jnp.uint16)[ids]
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)

    if table.dtype != jnp.bfloat16:
        return plain(table, ids)
    return jax.lax.platform_dependent(table, ids, cpu=as_integers, default=plain)


def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[R, D] times [V, D] -> [R, V] float32: the head, whose result is not rounded."""
    return jax.lax.dot_general(
        x, weight.astype(x.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
