"""The Llama family (arXiv:2302.13971, arXiv:2407.21783): pre-norm, SwiGLU, GQA, rotary."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.cache.ring import Rings, Rows
from tpuinfer.config import ModelConfig
from tpuinfer.errors import ConfigError
from tpuinfer.models import blocks
from tpuinfer.models.blueprint import traced_once
from tpuinfer.ops import linear
from tpuinfer.sharding.rules import Layout


class Layer(nnx.Module):
    def __init__(self, c: ModelConfig) -> None:
        self.input_layernorm = blocks.RMSNorm(c.embed, c.norm_eps)
        self.self_attn = blocks.Attention(c)
        self.post_attention_layernorm = blocks.RMSNorm(c.embed, c.norm_eps)
        self.mlp = blocks.GatedMLP(c)

    def __call__(
        self,
        x: jax.Array,
        angles: blocks.Angles,
        rings: Rings,
        rows: Rows,
        attend: blocks.Attend,
        layout: Layout,
    ) -> tuple[jax.Array, Rings]:
        normed = self.input_layernorm(x)
        out, rings = self.self_attn(normed, angles, rings, rows, attend, layout)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x), layout), rings


class Llama(nnx.Module):
    """A blueprint: `hidden` runs the layers, `logits` the head."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.embed_tokens = blocks.Embedding(config.vocab, config.embed)
        self.layers = nnx.List([Layer(config) for _ in range(config.layers)])
        self.norm = blocks.RMSNorm(config.embed, config.norm_eps)
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
        x = self.embed_tokens(tokens, layout, dtype)
        config = self.config
        angles = blocks.angles_of(rows, tokens.shape[1], config.head_dim, config.rope_theta)

        def apply(
            layer: Layer, x: jax.Array, angles: blocks.Angles, own: Rings, rows: Rows
        ) -> tuple[jax.Array, Rings]:
            return layer(x, angles, own, rows, attend, layout)

        run = traced_once(apply)
        written = []
        for layer, own in zip(self.layers, rings, strict=True):
            x, own = run(layer, x, angles, own, rows)
            written.append(own)
        return x, tuple(written)

    def logits(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[R, D] of one token per row -> [R, V] float32, complete on every model shard."""
        head = self.embed_tokens if self.config.tie_embeddings else self.lm_head
        normed = self.norm(x)
        weight = head.weight.get_value()
        logits = linear.project(normed, weight)
        logits = layout.constrain(logits, ("batch", "vocab"))
        return layout.constrain(logits, ("batch", None))


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """A Llama config.json (Hugging Face's names) as numbers.

    Raises:
      ConfigError: an entry is missing, or asks for what this family does not do here.
    """
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    refused = {
        "rope_scaling": kind if kind != "default" else None,
        "attention_bias": hf.get("attention_bias") or None,
        "mlp_bias": hf.get("mlp_bias") or None,
        "hidden_act": hf.get("hidden_act") if hf.get("hidden_act", "silu") != "silu" else None,
    }
    for name, value in refused.items():
        if value is not None:
            raise ConfigError(f"config.json has {name} {value!r}: not supported for llama yet")
    try:
        heads = int(hf["num_attention_heads"])
        embed = int(hf["hidden_size"])
        eos = hf.get("eos_token_id")
        return ModelConfig(
            family="llama",
            vocab=int(hf["vocab_size"]),
            embed=embed,
            mlp=int(hf["intermediate_size"]),
            layers=int(hf["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(hf.get("num_key_value_heads") or heads),
            head_dim=int(hf.get("head_dim") or embed // heads),
            context=int(hf["max_position_embeddings"]),
            rope_theta=float(hf.get("rope_theta") or scaling.get("rope_theta") or 10_000.0),
            norm_eps=float(hf["rms_norm_eps"]),
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
            bos_id=hf.get("bos_token_id"),
        )
    except KeyError as error:
        raise ConfigError(f"config.json has no {error.args[0]!r}, which llama needs") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.json has an entry of the wrong type: {error}") from error
