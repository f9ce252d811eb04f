"""Mixtures of experts (arXiv:1701.06538): which experts a row goes to, and what they make of it.

Letters: X rows, E experts (e of them on this device), k active ones, D embed, F mlp.

Every form is dropless and has fixed shapes, and a row's bits depend on that row alone: nothing is
summed over rows, and the experts of a row are added up in an order that the row itself sets.

    dense    every expert computes every row; those that a row did not choose are masked out
    ragged   X * k copies of the rows, sorted by expert; each expert computes its own rows

Dense reads each weight once and multiplies E / k times too often, which costs nothing while reading
is what takes the time. Ragged multiplies only what is needed, where the hardware has a kernel for
it; without one XLA masks its way through a dense product that is k times larger than ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tpuinfer.quant.dots import contract, contract_each
from tpuinfer.quant.qarray import QArray, dequantise

Gate = Callable[[jax.Array, jax.Array], jax.Array]
"""(gate, up) -> what goes down, element by element, in float32."""


class Routing(NamedTuple):
    """Where the rows go.

    Attributes:
      weights: [X, k] float32, what the outputs of a row's experts are multiplied by.
      ids: [X, k] int32, its experts, the best first; in [0, E), each at most once in a row.
    """

    weights: jax.Array
    ids: jax.Array


class Weights(NamedTuple):
    """The experts on this device.

    Attributes:
      gate, up: [e, F, D], plain or quantised. down: [e, D, F].
      gate_bias, up_bias: [e, F]; None = no bias. down_bias: [e, D].
    """

    gate: jax.Array | QArray
    up: jax.Array | QArray
    down: jax.Array | QArray
    gate_bias: jax.Array | None = None
    up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None


Form = Callable[[jax.Array, Routing, Weights, Gate, jax.Array | int], jax.Array]
"""`dense` or `ragged`."""


def route(logits: jax.Array, active: int, normalise: bool) -> Routing:
    """Send each row to its `active` best experts; ties go to the lowest id.

    Args:
      logits: [X, E] float32.
      normalise: a row's weights sum to one: a softmax over its experts alone. Otherwise they are
        the experts' shares of a softmax over all (arXiv:2101.03961).
    """
    if normalise:
        best, ids = jax.lax.top_k(logits, active)
        return Routing(jax.nn.softmax(best, axis=-1), ids)
    return Routing(*jax.lax.top_k(jax.nn.softmax(logits, axis=-1), active))


def clamped_swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """GPT-OSS's gate (arXiv:2508.10925): gate * sigmoid(1.702 gate) * (up + 1), both kept near 0.

    The gate is at most 7, up within +-7.
    """
    gate = jnp.minimum(gate, 7.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (jnp.clip(up, -7.0, 7.0) + 1)


def dense(
    x: jax.Array,
    routing: Routing,
    weights: Weights,
    gate: Gate,
    first: jax.Array | int = 0,
    *,
    tokens: int = 1,
) -> jax.Array:
    """Every expert computes every row.

    An expert that a row did not choose adds exactly 0 to it, even if it makes inf or nan of it.

    Args:
      x: [X, D].
      first: the id of this device's first expert.
      tokens: of one row of the batch, as `quant.dots.contract` takes it.

    Returns:
      [X, D] float32, the sum over the experts on this device.

        X = 2, e = 3     chosen      combine        out[e, X]    result
        row 0: 2, 0      1 0 1       .3  0  .7      a b          .3 a + .7 e
        row 1: 1, 2      0 1 1       0  .6  .4      c d          .6 d + .4 f
                                                    e f
    """
    size, width, _ = weights.gate.shape
    here = routing.ids[:, :, None] == first + jnp.arange(size, dtype=jnp.int32)[None, None, :]
    combine = jnp.where(here, routing.weights[:, :, None], 0).sum(axis=1)
    chosen = here.any(axis=1)

    def up_to_mlp(weight: jax.Array | QArray, bias: jax.Array | None) -> jax.Array:
        if isinstance(weight, QArray):
            flat = contract(x, weight, tokens)
        else:
            flat = jax.lax.dot_general(
                x,
                weight.reshape(size * width, -1).astype(x.dtype),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        made = flat.reshape(-1, size, width)
        return made if bias is None else made + bias[None].astype(jnp.float32)

    hidden = gate(
        up_to_mlp(weights.gate, weights.gate_bias), up_to_mlp(weights.up, weights.up_bias)
    )
    if isinstance(weights.down, QArray):
        out = contract_each(hidden.astype(x.dtype), weights.down)
    else:
        out = jax.lax.dot_general(  # [e, X, D]
            hidden.astype(x.dtype),
            weights.down.astype(x.dtype),
            (((2,), (2,)), ((1,), (0,))),
            preferred_element_type=jnp.float32,
        )
    if weights.down_bias is not None:
        out = out + weights.down_bias[:, None, :].astype(jnp.float32)
    return jnp.where(chosen.T[:, :, None], out * combine.T[:, :, None], 0).sum(axis=0)


def ragged(
    x: jax.Array, routing: Routing, weights: Weights, gate: Gate, first: jax.Array | int = 0
) -> jax.Array:
    """Each expert computes the rows that chose it; arguments and result as for `dense`.

    Quantised weights are widened: the products of sorted rows have no form of their own for them.

    A row is copied k times, the copies are sorted by expert, and come back by a gather.

        row 0: 2, 0   row 1: 1, 2      copies by expert   0:1   1:0   0:0   1:1
                                       their experts      0     1     2     2
                                       group sizes        1     1     2
        Copies that went to another device's experts come last and belong to no group.
    """
    rows, active = routing.ids.shape
    size = weights.gate.shape[0]
    local = routing.ids.reshape(-1) - first
    local = jnp.where((local >= 0) & (local < size), local, size)
    order = jnp.argsort(local, stable=True)
    groups = jnp.arange(size, dtype=local.dtype)
    sizes = (local[:, None] == groups[None, :]).sum(axis=0, dtype=jnp.int32)
    expert = jnp.minimum(local[order], size - 1)
    contract_last = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[0],
    )

    def linear(x: jax.Array, weight: jax.Array | QArray, bias: jax.Array | None) -> jax.Array:
        if isinstance(weight, QArray):
            weight = dequantise(weight)
        made = jax.lax.ragged_dot_general(
            x, weight.astype(x.dtype), sizes, contract_last, preferred_element_type=jnp.float32
        )
        return made if bias is None else made + bias[expert].astype(jnp.float32)

    copies = x[order // active]
    hidden = gate(
        linear(copies, weights.gate, weights.gate_bias),
        linear(copies, weights.up, weights.up_bias),
    )
    out = linear(hidden.astype(x.dtype), weights.down, weights.down_bias)
    out = out[jnp.argsort(order)].reshape(rows, active, -1)
    mine = (local < size).reshape(rows, active, 1)
    parts = jnp.where(mine, out * routing.weights[:, :, None], 0)
    return sum((parts[:, at] for at in range(1, active)), start=parts[:, 0])
