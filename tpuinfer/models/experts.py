"""A mixture of experts in place of a layer's MLP: the modules around `ops.experts`.

Letters: B rows, T tokens per row, D embed, E experts, F mlp of each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.model_config import ModelConfig
from tpuinfer.models import placed
from tpuinfer.models.blocks import activate
from tpuinfer.models.blueprint import Axes, specs, weight
from tpuinfer.ops import experts, linear
from tpuinfer.platform import platform_settings
from tpuinfer.sharding.layout import Layout


class Stack(nnx.Module):
    """A weight whose last dimension is contracted, and a bias along the others, if there is one.

    Args:
      exact: it is never quantised.
    """

    def __init__(
        self, shape: tuple[int, ...], axes: Axes, bias: bool, *, exact: bool = False
    ) -> None:
        self.axes = axes
        self.weight = weight(shape, axes, contracted=0 if exact else 1)
        self.bias = weight(shape[:-1], axes[:-1]) if bias else None

    def values(self) -> tuple[Any, jax.Array | None]:
        return self.weight.get_value(), None if self.bias is None else self.bias.get_value()

    def specs(self, layout: Layout) -> tuple[Any, Any]:
        """Where `values` lie."""
        where = specs(self.weight.get_value(), self.axes, layout)
        return where, None if self.bias is None else layout.spec(self.axes[:-1])


class Experts(nnx.Module):
    """The experts' weights; each is a gated linear unit.

    A mesh axis cuts them by number ("expert"), or each of them within ("expert_mlp").
    """

    def __init__(self, embed: int, count: int, mlp: int, bias: bool) -> None:
        D, E, F = embed, count, mlp
        self.gate_proj = Stack((E, F, D), ("expert", "expert_mlp", "expert_embed"), bias)
        self.up_proj = Stack((E, F, D), ("expert", "expert_mlp", "expert_embed"), bias)
        self.down_proj = Stack((E, D, F), ("expert", "expert_embed", "expert_mlp"), bias)

    def stacks(self) -> tuple[Stack, Stack, Stack]:
        return self.gate_proj, self.up_proj, self.down_proj


class Mixture(nnx.Module):
    """Each token goes to the best few of E experts; their outputs are weighted and summed.

    Every device routes all of its rows, in float32, and runs what it has of the experts;
    the devices' sums are added up. Rows of several data shards come together where those share the
    experts.

    Args:
      clamped: the experts' gate is GPT-OSS's; otherwise it is activation(gate) * up.
    """

    def __init__(self, c: ModelConfig, *, clamped: bool = False) -> None:
        assert c.experts is not None
        self.sizes, self.activation, self.clamped = c.experts, c.activation, clamped
        shape = (c.experts.count, c.embed)
        self.router = Stack(shape, (None, None), c.mlp_bias, exact=True)
        self.experts = Experts(c.embed, c.experts.count, c.experts.mlp, c.mlp_bias)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        maps = (self.router, *self.experts.stacks())
        summed = (*layout.axes_of("expert_mlp"), *layout.axes_of("expert"))
        meets = placed.Meeting(layout, summed, (), ("batch", None, "residual"))
        if layout.axes_of("residual"):
            x = layout.constrain(x, ("batch", None, None))

        def local(x: jax.Array, values: Any) -> jax.Array:
            flat = x.reshape(-1, x.shape[-1])
            routing = self._route(flat, *values[0])
            form: experts.Form
            if self._is_ragged(x.shape[1], layout):
                form = experts.ragged
            else:
                form = functools.partial(experts.dense, tokens=x.shape[1])
            partial = self._mix(form, flat, routing, values[1:], layout).astype(x.dtype)
            return partial.reshape(x.shape)

        values = []
        for one in maps:
            value, bias = one.values()
            if layout.stored(one.axes) != layout.spec(one.axes):
                x, value = placed.brought(x, value, one.axes, layout)
            values.append((value, bias))
        where = (meets.spec(2), tuple(one.specs(layout) for one in maps))
        given = (x, tuple(values))
        return layout.constrain(placed.total(local, given, where, meets, x.shape), meets.into)

    def _route(self, x: jax.Array, value: jax.Array, bias: jax.Array | None) -> experts.Routing:
        logits = linear.project(x, value)
        if bias is not None:
            logits = logits + bias[None].astype(jnp.float32)
        return experts.route(logits, self.sizes.active, self.sizes.normalise)

    def _is_ragged(self, tokens: int, layout: Layout) -> bool:
        """By the tokens per row: the number of rows varies with the load, and bits must not."""
        enough = platform_settings(layout.mesh.devices.flat[0].platform).ragged_tokens
        return enough is not None and tokens >= enough

    def _mix(
        self,
        form: experts.Form,
        x: jax.Array,
        routing: experts.Routing,
        values: Any,
        layout: Layout,
    ) -> jax.Array:
        """The sum over what this device has of the experts, [X, D] float32."""
        (gate, gate_bias), (up, up_bias), (down, down_bias) = values
        within, first = layout.mesh_axis("expert_mlp"), 0
        if within is not None and down_bias is not None:
            # Each device has a part of every sum, and the bias is to be added once.
            down_bias = jnp.where(jax.lax.axis_index(within) == 0, down_bias, 0)
        if (cut := layout.mesh_axis("expert")) is not None:
            first = jax.lax.axis_index(cut) * gate.shape[0]
        weights = experts.Weights(gate, up, down, gate_bias, up_bias, down_bias)
        return form(x, routing, weights, self._gate, first)

    def _gate(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        if self.clamped:
            return experts.clamped_swiglu(gate, up)
        return activate(gate, self.activation) * up
