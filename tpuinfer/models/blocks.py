"""The blocks that families are composed of.

Letters: B rows, T tokens per row, D embed, F mlp, N query heads, K KV heads, H head dim, V vocab.
Equation, shape and axes of a weight stand on one line; weights keep Hugging Face's order.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.cache.held import Rings, Rows
from tpuinfer.cache.ring import Asked, Scores
from tpuinfer.model_config import Activation, ModelConfig, Rope
from tpuinfer.models import placed
from tpuinfer.models.blueprint import Axes, stored_specs, weight
from tpuinfer.ops import linear, norm, rope
from tpuinfer.sharding.layout import Layout, MeshAxis
from tpuinfer.sharding.reduce import reduce_model
from tpuinfer.sharding.rules import as_place

_ACTIVATION_AXES = {
    "B": "batch",
    "T": None,
    "D": "residual",
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


def angles_of(rows: Rows, width: int, head_dim: int, kind: Rope) -> Angles:
    """Angles for [R, width] tokens."""
    positions = rows.positions(width)
    own, sinks = rope.rope_angles(positions, head_dim, kind), None
    if rows.horizon is not None:
        seen_from = jnp.minimum(positions, rows.horizon[:, None])
        sinks = rope.rope_angles(seen_from, head_dim, kind)
    # Without the barrier every layer would compute the sines anew.
    return Angles(*jax.lax.optimization_barrier((own, sinks)))


class Attend(Protocol):
    """Attend over rings and write to them; `tpuinfer.cache.ring.RingAttention` is the real one."""

    def __call__(
        self, asked: Asked, rings: Rings, rows: Rows, scores: Scores = ...
    ) -> tuple[jax.Array, Rings]: ...


class Call(NamedTuple):
    """What every layer of one program call is given beside its input.

    Attributes:
      angles: of the layer's own rotary positions; None = it has none.
      rings: of the layer. rows: which tokens the rows carry. attend, layout: the program's.
    """

    angles: Angles | None
    rings: Rings
    rows: Rows
    attend: Attend
    layout: Layout


def activation_axes(letters: str) -> Axes:
    """Logical axes of an activation written in letters: "BTNH" -> (batch, None, heads, None)."""
    return tuple(_ACTIVATION_AXES.get(letter) for letter in letters)


def activate(x: jax.Array, kind: Activation) -> jax.Array:
    """The MLP's nonlinearity: SiLU, GELU (arXiv:1606.08415), or GELU by its tanh approximation."""
    if kind == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=kind == "gelu_tanh")


class Einsum(nnx.Module):
    """A linear map. When it contracts a sharded axis, `reduce_model` sums over the devices.

    Args:
      bias: add a bias, shaped as what the equation makes.
    """

    def __init__(
        self, equation: str, shape: tuple[int, ...], axes: Axes, bias: bool = False
    ) -> None:
        self.equation = equation
        self.axes = axes
        contracted, made = linear.split_equation(equation)
        self.weight = weight(shape, axes, contracted)
        axes = tuple("residual" if axis == "embed" else axis for axis in axes[:made])
        self.bias = weight(shape[:made], axes) if bias else None

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """Apply to x, shaped as the equation's first operand; returns its result, in x's dtype."""
        contracted, _ = linear.split_equation(self.equation)
        return self._add_bias(
            placed.apply(
                functools.partial(linear.einsum, self.equation),
                x,
                self.weight.get_value(),
                self.axes,
                contracted,
                layout,
                activation_axes(self.equation.split("->")[1]),
            )
        )

    def _add_bias(self, x: jax.Array) -> jax.Array:
        if self.bias is None:
            return x
        bias = self.bias.get_value().astype(x.dtype)
        return x + jnp.expand_dims(bias, range(x.ndim - bias.ndim))


class Embedding(nnx.Module):
    """Token embedding [V, D], cut along vocab; also the head when the model ties them."""

    def __init__(self, vocab: int, embed: int) -> None:
        self.weight = weight((vocab, embed), ("vocab", "embed"), contracted=1)

    def __call__(self, tokens: jax.Array, layout: Layout, dtype: jnp.dtype) -> jax.Array:
        """[B, T] int32 ids in [0, V) -> [B, T, D]."""
        rows = self._rows(tokens, self.weight.get_value(), layout, dtype)
        return layout.constrain(rows, activation_axes("BTD"))

    def _rows(self, tokens: jax.Array, table: Any, layout: Layout, dtype: jnp.dtype) -> jax.Array:
        """The rows, taken where the table is kept: whatever the rules gather, it is not moved."""
        cut, made = layout.stored_axes_of("vocab"), layout.stored_axes_of("embed")
        if not cut and not made:
            return linear.take_rows(table, tokens).astype(dtype)
        meets = placed.Meeting(layout, cut, made, activation_axes("BTD"))

        def local(tokens: jax.Array, table: Any) -> jax.Array:
            if not cut:
                return linear.take_rows(table, tokens).astype(dtype)
            own = table.shape[0]
            here = tokens - jax.lax.axis_index(as_place(cut)) * own
            mine = (here >= 0) & (here < own)
            rows = linear.take_rows(table, jnp.where(mine, here, 0)).astype(dtype)
            return jnp.where(mine[..., None], rows, 0)

        where = (meets.spec(2), stored_specs(table, ("vocab", "embed"), layout))
        return placed.total(local, (tokens, table), where, meets, (*tokens.shape, table.shape[1]))


class RMSNorm(nnx.Module):
    """RMSNorm (arXiv:1910.07467) over the last dimension.

    Args:
      offset: added to the weight (1 where a checkpoint keeps what is beyond 1).
      wide: multiply by the weight in float32, before rounding.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        axes: Axes = ("residual",),
        *,
        offset: float = 0.0,
        wide: bool = False,
    ) -> None:
        self.eps, self.offset, self.wide, self.axes = eps, offset, wide, axes
        self.weight = weight((size,), axes)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[..., D] as it lies between blocks, and so the result."""
        value = self.weight.get_value()
        if layout.mesh_axis("residual") is None:
            return norm.rms_norm(x, value, self.eps, offset=self.offset, wide=self.wide)
        how = functools.partial(norm.scaled, offset=self.offset, wide=self.wide)
        return _norm_of_pieces(x, value, ("residual",), self.eps, how, layout)


def _norm_of_pieces(
    x: jax.Array,
    value: jax.Array,
    axes: Axes,
    eps: float,
    scaled: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    layout: Layout,
) -> jax.Array:
    """RMSNorm over x's last dimensions together, those of the weight, the first of which is cut.

    Args:
      axes: of the weight. scaled: puts the weight to what is normalised, as `norm.scaled`.
    """
    mesh_axis = layout.mesh_axis(axes[0] or "")

    def local(x: jax.Array, value: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(_square_means(x, len(axes), mesh_axis) + eps)
        scale = scale.reshape(*scale.shape[:-1], *[1] * len(axes))
        return scaled(x, x.astype(jnp.float32) * scale, value)

    if mesh_axis is None:
        return local(x, value)
    place = layout.spec(("batch", *[None] * (x.ndim - len(axes) - 1), *axes))
    by_piece = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(place, layout.spec(axes)),
        out_specs=place,
        check_vma=False,
    )
    result: jax.Array = by_piece(x, value)
    return result


def _square_means(x: jax.Array, last: int, mesh_axis: MeshAxis) -> jax.Array:
    """Means of squares over the `last` dimensions together, of which each device has a piece.

    [..., 1], float32. Each device sums its own squares, and their sums are added up in the same
    order for every row.
    """
    flat = x.astype(jnp.float32).reshape(*x.shape[:-last], -1)
    total, size = jnp.square(flat).sum(axis=-1, keepdims=True), flat.shape[-1]
    if mesh_axis is None:
        return total / size
    return reduce_model(total, mesh_axis, "exact") / (size * jax.lax.axis_size(mesh_axis))


class HeadNorm(nnx.Module):
    """RMSNorm of each head on its own: [B, T, N, H], a weight of [H] for all heads."""

    def __init__(self, c: ModelConfig, *, offset: float = 0.0, wide: bool = False) -> None:
        self.eps, self.offset, self.wide = c.norm_eps, offset, wide
        self.weight = weight((c.head_dim,), ("head_dim",))

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        value = self.weight.get_value()
        return norm.rms_norm(x, value, self.eps, offset=self.offset, wide=self.wide)


class FlatNorm(nnx.Module):
    """RMSNorm over all heads together: [B, T, N, H], a weight of [N, H].

    Where heads are cut, each device sums its own squares and `reduce_model` adds them up.

    Args:
      axis: "heads" or "kv_heads".
    """

    def __init__(self, heads: int, c: ModelConfig, axis: str, *, wide: bool = False) -> None:
        self.eps, self.wide, self.axes = c.norm_eps, wide, (axis, "head_dim")
        self.weight = weight((heads, c.head_dim), self.axes)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        how = functools.partial(norm.scaled, wide=self.wide)
        return _norm_of_pieces(x, self.weight.get_value(), self.axes, self.eps, how, layout)


class Attention(nnx.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions over a ring.

    Args:
      q_norm, k_norm: applied to queries and keys before they are turned; None = nothing is.
      sinks: each head has a learned score that takes part in its softmax (arXiv:2508.10925).
    """

    def __init__(
        self,
        c: ModelConfig,
        *,
        q_norm: HeadNorm | FlatNorm | None = None,
        k_norm: HeadNorm | FlatNorm | None = None,
        sinks: bool = False,
    ) -> None:
        D, N, K, H = c.embed, c.heads, c.kv_heads, c.head_dim
        kv = ("kv_heads", "head_dim", "embed")
        self.q_proj = Einsum("BTD,NHD->BTNH", (N, H, D), ("heads", "head_dim", "embed"), c.qkv_bias)
        self.k_proj = Einsum("BTD,KHD->BTKH", (K, H, D), kv, c.qkv_bias)
        self.v_proj = Einsum("BTD,KHD->BTKH", (K, H, D), kv, c.qkv_bias)
        self.o_proj = Einsum("BTNH,DNH->BTD", (D, N, H), ("embed", "heads", "head_dim"), c.o_bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.sinks = weight((N,), ("heads",)) if sinks else None
        self.scores = Scores(c.query_scale, c.score_cap)

    def __call__(self, x: jax.Array, call: Call) -> tuple[jax.Array, Rings]:
        layout = call.layout
        x = placed.whole_input(x, layout)
        q, k, v = (project(x, layout) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q = self.q_norm(q, layout)
        if self.k_norm is not None:
            k = self.k_norm(k, layout)
        sink_q = None
        if call.angles is not None:
            if call.angles.sinks is not None and call.rings[0].sinks:
                sink_q = rope.apply_rope(q, call.angles.sinks)
            q, k = (rope.apply_rope(array, call.angles.own) for array in (q, k))
        learned = None if self.sinks is None else self.sinks.get_value()
        asked = Asked(q, k, v, sink_q, learned)
        out, rings = call.attend(asked, call.rings, call.rows, self.scores)
        return self.o_proj(out, layout), rings


class GatedMLP(nnx.Module):
    """A gated linear unit (arXiv:2002.05202): down(activation(gate(x)) * up(x))."""

    def __init__(self, c: ModelConfig) -> None:
        D, F = c.embed, c.mlp
        self.activation = c.activation
        self.gate_proj = Einsum("BTD,FD->BTF", (F, D), ("mlp", "embed"), c.mlp_bias)
        self.up_proj = Einsum("BTD,FD->BTF", (F, D), ("mlp", "embed"), c.mlp_bias)
        self.down_proj = Einsum("BTF,DF->BTD", (D, F), ("embed", "mlp"), c.mlp_bias)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        x = placed.whole_input(x, layout)
        gate = activate(self.gate_proj(x, layout), self.activation)
        return self.down_proj(gate * self.up_proj(x, layout), layout)
