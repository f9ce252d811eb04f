"""The blocks that families are composed of.

Letters: B rows, T tokens per row, D embed, F mlp, N query heads, K KV heads, H head dim, V vocab.
Equation, shape and axes of a weight stand on one line; weights keep Hugging Face's order.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.cache.ring import Rings, Rows
from tpuinfer.config import ModelConfig
from tpuinfer.models.blueprint import weight
from tpuinfer.ops import linear, norm, rope
from tpuinfer.sharding.reduce import reduce_model
from tpuinfer.sharding.rules import Layout

Axes = tuple[str | None, ...]

_ACTIVATION_AXES = {
    "B": "batch",
    "T": None,
    "D": "embed",
    "F": "mlp",
    "N": "heads",
    "K": "kv_heads",
}


class Angles(NamedTuple):
    """Rotary angles of a program call, as `ops.rope.rope_angles` makes them.

    Attributes:
      own: of each token's own position. sinks: of the position from which it sees the sinks; None
        when there are none.
    """

    own: tuple[jax.Array, jax.Array]
    sinks: tuple[jax.Array, jax.Array] | None


def angles_of(rows: Rows, width: int, head_dim: int, theta: float) -> Angles:
    """Angles for [R, width] tokens."""
    positions = rows.positions(width)
    own, sinks = rope.rope_angles(positions, head_dim, theta), None
    if rows.horizon is not None:
        seen_from = jnp.minimum(positions, rows.horizon[:, None])
        sinks = rope.rope_angles(seen_from, head_dim, theta)
    # Without the barrier every layer would compute the sines anew.
    return Angles(*jax.lax.optimization_barrier((own, sinks)))


class Attend(Protocol):
    """Attend over rings and write to them; `tpuinfer.cache.ring.RingAttention` is the real one."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rings: Rings,
        rows: Rows,
        sink_q: jax.Array | None = None,
    ) -> tuple[jax.Array, Rings]: ...


def activation_axes(letters: str) -> Axes:
    """Logical axes of an activation written in letters: "BTNH" -> (batch, None, heads, None)."""
    return tuple(_ACTIVATION_AXES.get(letter) for letter in letters)


class Einsum(nnx.Module):
    """A linear map. When it contracts a sharded axis, `reduce_model` sums over the devices."""

    def __init__(self, equation: str, shape: tuple[int, ...], axes: Axes) -> None:
        self.equation = equation
        self.axes = axes
        self.weight = weight(shape, axes)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """Apply to x, shaped as the equation's first operand; returns its result, in x's dtype."""
        value = self.weight.get_value()
        inputs, outputs = self.equation.split(",")[0], self.equation.split("->")[1]
        contracted, _ = linear.split_equation(self.equation)
        summed = layout.mesh_axis(self.axes[-contracted] or "embed")
        if summed is None:
            result = linear.einsum(self.equation, x, value)
            return layout.constrain(result, activation_axes(outputs))

        def local(x: jax.Array, value: jax.Array) -> jax.Array:
            partial = linear.einsum(self.equation, x, value)
            return reduce_model(partial, summed, layout.rules.reduce)

        placed = jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(layout.spec(activation_axes(inputs)), layout.spec(self.axes)),
            out_specs=layout.spec(activation_axes(outputs)),
            check_vma=False,
        )
        return placed(x, value)


class Embedding(nnx.Module):
    """Token embedding [V, D], cut along vocab; also the head when the model ties them."""

    def __init__(self, vocab: int, embed: int) -> None:
        self.weight = weight((vocab, embed), ("vocab", "embed"))

    def __call__(self, tokens: jax.Array, layout: Layout, dtype: jnp.dtype) -> jax.Array:
        """[B, T] int32 ids in [0, V) -> [B, T, D]."""
        table = self.weight.get_value()
        mesh_axis = layout.mesh_axis("vocab")
        if mesh_axis is None:
            rows = linear.take_rows(table, tokens).astype(dtype)
            return layout.constrain(rows, activation_axes("BTD"))

        def local(tokens: jax.Array, table: jax.Array) -> jax.Array:
            here = tokens - jax.lax.axis_index(mesh_axis) * table.shape[0]
            mine = (here >= 0) & (here < table.shape[0])
            rows = linear.take_rows(table, jnp.where(mine, here, 0)).astype(dtype)
            return reduce_model(jnp.where(mine[..., None], rows, 0), mesh_axis)

        placed = jax.shard_map(
            local,
            mesh=layout.mesh,
            in_specs=(layout.spec(activation_axes("BT")), layout.spec(("vocab", "embed"))),
            out_specs=layout.spec(activation_axes("BTD")),
            check_vma=False,
        )
        result: jax.Array = placed(tokens, table)
        return result


class RMSNorm(nnx.Module):
    def __init__(self, embed: int, eps: float) -> None:
        self.eps = eps
        self.weight = weight((embed,), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        return norm.rms_norm(x, self.weight.get_value(), self.eps)


class Attention(nnx.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions over a ring."""

    def __init__(self, c: ModelConfig) -> None:
        D, N, K, H = c.embed, c.heads, c.kv_heads, c.head_dim
        self.q_proj = Einsum("BTD,NHD->BTNH", (N, H, D), ("heads", "head_dim", "embed"))
        self.k_proj = Einsum("BTD,KHD->BTKH", (K, H, D), ("kv_heads", "head_dim", "embed"))
        self.v_proj = Einsum("BTD,KHD->BTKH", (K, H, D), ("kv_heads", "head_dim", "embed"))
        self.o_proj = Einsum("BTNH,DNH->BTD", (D, N, H), ("embed", "heads", "head_dim"))

    def __call__(
        self, x: jax.Array, angles: Angles, rings: Rings, rows: Rows, attend: Attend, layout: Layout
    ) -> tuple[jax.Array, Rings]:
        q = self.q_proj(x, layout)
        sink_q = None
        if angles.sinks is not None and rings[0].sinks:
            sink_q = rope.apply_rope(q, angles.sinks)
        q = rope.apply_rope(q, angles.own)
        k = rope.apply_rope(self.k_proj(x, layout), angles.own)
        out, rings = attend(q, k, self.v_proj(x, layout), rings, rows, sink_q)
        return self.o_proj(out, layout), rings


class GatedMLP(nnx.Module):
    """SwiGLU (arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, c: ModelConfig) -> None:
        D, F = c.embed, c.mlp
        self.gate_proj = Einsum("BTD,FD->BTF", (F, D), ("mlp", "embed"))
        self.up_proj = Einsum("BTD,FD->BTF", (F, D), ("mlp", "embed"))
        self.down_proj = Einsum("BTF,DF->BTD", (D, F), ("embed", "mlp"))

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        gate = jax.nn.silu(self.gate_proj(x, layout))
        return self.down_proj(gate * self.up_proj(x, layout), layout)
