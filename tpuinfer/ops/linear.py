"""Matmuls with weights kept in Hugging Face's order: output dimensions first, input last."""

import math

import jax
import jax.numpy as jnp

from tpuinfer.quant.dots import contract
from tpuinfer.quant.qarray import QArray, dequantise


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


def einsum(equation: str, x: jax.Array, weight: jax.Array | QArray) -> jax.Array:
    """X times weight, accumulated in float32, returned in x's dtype.

    Run as one two-dimensional `[rows, in] x [out, in]` dot: the form that XLA:CPU has a fast path
    for, and free elsewhere.

    Args:
      equation: such as "BTD,FD->BTF"; the contracted letters end both operands.
      weight: cast to x's dtype when it differs; of a QArray the codes are.
    """
    contracted, _ = split_equation(equation)
    lead = x.shape[:-contracted]
    if isinstance(weight, QArray):
        tokens = lead[-1] if len(lead) > 1 else 1
        made = contract(x.reshape(math.prod(lead), -1), weight, tokens)
        return made.astype(x.dtype).reshape(*lead, *weight.shape[:-1])
    out = weight.shape[:-contracted]
    width = math.prod(weight.shape[-contracted:])
    flat = jax.lax.dot_general(
        x.reshape(-1, width),
        weight.reshape(-1, width).astype(x.dtype),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return flat.astype(x.dtype).reshape(*lead, *out)


def take_rows(table: jax.Array | QArray, ids: jax.Array) -> jax.Array:
    """Rows of a [V, D] table: [...] int32 ids in [0, V) -> [..., D], in the table's dtype.

    Rows of a QArray come back as float32.

    XLA:CPU converts a bf16 table to float32, whole, before it gathers from it; the same bits taken
    as integers are left where they are. (On a TPU it is the other way round: the bits are copied.)
    In a loop the table would be turned into integers ahead of it, again whole; the barrier ties
    that to the ids, which change with every turn.
    """
    if isinstance(table, QArray):
        taken = jax.tree.map(lambda part: take_rows(part, ids), table)
        return dequantise(taken)

    def plain(table: jax.Array, ids: jax.Array) -> jax.Array:
        return table[ids]

    kind = table.dtype
    integer = {2: jnp.uint16, 1: jnp.uint8}.get(kind.itemsize)
    if integer is None or not jnp.issubdtype(kind, jnp.floating):
        return plain(table, ids)

    def as_integers(table: jax.Array, ids: jax.Array) -> jax.Array:
        table, ids = jax.lax.optimization_barrier((table, ids))
        bits = jax.lax.bitcast_convert_type(table, integer)[ids]
        return jax.lax.bitcast_convert_type(bits, kind)

    return jax.lax.platform_dependent(table, ids, cpu=as_integers, default=plain)


def project(x: jax.Array, weight: jax.Array | QArray) -> jax.Array:
    """[R, D] times [V, D] -> [R, V] float32: the head, whose result is not rounded."""
    if isinstance(weight, QArray):
        return contract(x, weight)
    return jax.lax.dot_general(
        x, weight.astype(x.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
