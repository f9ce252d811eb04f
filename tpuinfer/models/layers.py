"""The three ways in which families put attention and MLP into a layer.

pre-norm     x + f(norm(x))                 most families
post-norm    x + norm(f(x))                 OLMo 2
sandwich     x + norm(f(norm(x)))           Gemma 2 and 3
"""

from collections.abc import Callable
from typing import Protocol

import jax
from flax import nnx

from tpuinfer.cache.held import Rings
from tpuinfer.model_config import ModelConfig
from tpuinfer.models.blocks import Attention, Call, GatedMLP, RMSNorm
from tpuinfer.sharding.layout import Layout


class MLP(Protocol):
    """[B, T, D] -> [B, T, D]: a `blocks.GatedMLP`, or a mixture of experts."""

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array: ...


MakeNorm = Callable[[], RMSNorm]


class PreNorm(nnx.Module):
    """Pre-norm layer.

    Args:
      scale: what the output of attention and MLP are multiplied by.
    """

    def __init__(self, attention: Attention, mlp: MLP, norm: MakeNorm, scale: float = 1.0) -> None:
        self.input_layernorm = norm()
        self.self_attn = attention
        self.post_attention_layernorm = norm()
        self.mlp = mlp
        self.scale = scale

    def __call__(self, x: jax.Array, call: Call) -> tuple[jax.Array, Rings]:
        out, rings = self.self_attn(self.input_layernorm(x, call.layout), call)
        x = x + self._scaled(out)
        normed = self.post_attention_layernorm(x, call.layout)
        return x + self._scaled(self.mlp(normed, call.layout)), rings

    def _scaled(self, x: jax.Array) -> jax.Array:
        return x if self.scale == 1 else x * self.scale


def plain(c: ModelConfig, attention: Attention | None = None, mlp: MLP | None = None) -> PreNorm:
    """The layer that most families have: pre-norm, grouped-query attention, gated MLP.

    Args:
      attention, mlp: in place of `blocks.Attention` and `blocks.GatedMLP` as they are.
    """
    return PreNorm(
        attention or Attention(c),
        mlp or GatedMLP(c),
        lambda: RMSNorm(c.embed, c.norm_eps),
        c.residual_scale,
    )


class PostNorm(nnx.Module):
    """Post-norm layer: what attention and MLP give is normalised, not what they get."""

    def __init__(self, attention: Attention, mlp: MLP, norm: MakeNorm) -> None:
        self.self_attn = attention
        self.post_attention_layernorm = norm()
        self.mlp = mlp
        self.post_feedforward_layernorm = norm()

    def __call__(self, x: jax.Array, call: Call) -> tuple[jax.Array, Rings]:
        out, rings = self.self_attn(x, call)
        x = x + self.post_attention_layernorm(out, call.layout)
        out = self.mlp(x, call.layout)
        return x + self.post_feedforward_layernorm(out, call.layout), rings


class Sandwich(nnx.Module):
    """Both: what attention and MLP get and what they give is normalised."""

    def __init__(self, attention: Attention, mlp: MLP, norm: MakeNorm) -> None:
        self.input_layernorm = norm()
        self.self_attn = attention
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = mlp
        self.post_feedforward_layernorm = norm()

    def __call__(self, x: jax.Array, call: Call) -> tuple[jax.Array, Rings]:
        out, rings = self.self_attn(self.input_layernorm(x, call.layout), call)
        x = x + self.post_attention_layernorm(out, call.layout)
        out = self.mlp(self.pre_feedforward_layernorm(x, call.layout), call.layout)
        return x + self.post_feedforward_layernorm(out, call.layout), rings
