"""A decoder: embedding, layers, norm, head. Families bring the layers."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.cache.held import Rings, Rows
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import blocks, placed
from tpuinfer.models.blueprint import traced_once
from tpuinfer.ops import linear
from tpuinfer.sharding.layout import Layout


class Layer(Protocol):
    """[B, T, D] -> [B, T, D] and the layer's rings, written: one of `models.layers`."""

    def __call__(self, x: jax.Array, call: blocks.Call) -> tuple[jax.Array, Rings]: ...


class Decoder(nnx.Module):
    """A blueprint: `hidden` runs the layers, `logits` the head.

    Args:
      layer: makes the layer of a number.
      norm: makes the norm before the head; None = `blocks.RMSNorm` as it is.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: Callable[[ModelConfig, int], nnx.Module],
        norm: Callable[[], blocks.RMSNorm] | None = None,
    ) -> None:
        self.config = config
        self.embed_tokens = blocks.Embedding(config.vocab, config.embed)
        self.layers = nnx.List([layer(config, index) for index in range(config.layers)])
        self.norm = norm() if norm else blocks.RMSNorm(config.embed, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = blocks.Embedding(config.vocab, config.embed)

    def hidden(
        self,
        tokens: jax.Array,
        rings: tuple[Rings, ...],
        rows: Rows,
        attend: blocks.Attend,
        layout: Layout,
        dtype: jnp.dtype,
    ) -> tuple[jax.Array, tuple[Rings, ...]]:
        """Run all layers over [R, T] tokens.

        Args:
          rings: of each layer.

        Returns:
          The last layer's output [R, T, D] (before the final norm) and the rings, written.
        """
        config = self.config
        x = self.embed_tokens(tokens, layout, dtype)
        if config.embed_scale != 1:
            x = x * jnp.asarray(config.embed_scale, dtype)
        ropes = [config.rope_of(index) for index in range(config.layers)]
        angles = {
            rope: blocks.angles_of(rows, tokens.shape[1], config.head_dim, rope)
            for rope in dict.fromkeys(ropes)
            if rope is not None
        }

        def apply(
            layer: Layer, x: jax.Array, turned: blocks.Angles | None, own: Rings, rows: Rows
        ) -> tuple[jax.Array, Rings]:
            return layer(x, blocks.Call(turned, own, rows, attend, layout))

        run = traced_once(apply)
        written = []
        for layer, own, rope in zip(self.layers, rings, ropes, strict=True):
            x, own = run(layer, x, None if rope is None else angles[rope], own, rows)
            written.append(own)
        return x, tuple(written)

    def logits(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[R, D] of one token per row -> [R, V] float32, complete on every model shard."""
        return layout.constrain(self.cut_logits(x, layout), ("batch", None))

    def cut_logits(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[R, D] of one token per row -> [R, V] float32, cut along the vocabulary."""
        config = self.config
        head = self.embed_tokens if config.tie_embeddings else self.lm_head
        x = placed.whole_input(self.norm(x, layout), layout)
        into = ("batch", "vocab")
        value = head.weight.get_value()
        logits = placed.apply(linear.project, x, value, ("vocab", "embed"), 1, layout, into)
        if config.logit_scale != 1:
            logits = logits * config.logit_scale
        if config.logit_cap is not None:
            logits = config.logit_cap * jnp.tanh(logits / config.logit_cap)
        return layout.constrain(logits, ("batch", "vocab"))
