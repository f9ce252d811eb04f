"""BERT and RoBERTa encoders (arXiv:1810.04805, arXiv:1907.11692): MiniLM, BGE, E5 and their kin."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from tpuinfer.errors import ConfigError
from tpuinfer.model_config import Activation, EncoderConfig
from tpuinfer.models import blocks
from tpuinfer.models.blueprint import traced_once, weight, weights
from tpuinfer.models.family import Family
from tpuinfer.models.hf_config import Entries
from tpuinfer.models.names import Names, Part, stored_shape
from tpuinfer.ops import encoder, norm
from tpuinfer.sharding.layout import Layout


class LayerNorm(nnx.Module):
    def __init__(self, embed: int, eps: float) -> None:
        self.eps = eps
        self.weight = weight((embed,), ("embed",))
        self.bias = weight((embed,), ("embed",))

    def __call__(self, x: jax.Array) -> jax.Array:
        return norm.layer_norm(x, self.weight.get_value(), self.bias.get_value(), self.eps)


class Table(nnx.Module):
    """Vectors [P, D] of which every row of a batch takes the same ones."""

    def __init__(self, size: int, embed: int) -> None:
        self.weight = weight((size, embed), (None, "embed"))

    def __call__(self, first: int, count: int, dtype: jnp.dtype) -> jax.Array:
        """Rows first : first + count, as [1, count, D]."""
        return self.weight.get_value()[None, first : first + count].astype(dtype)


class Attention(nnx.Module):
    def __init__(self, c: EncoderConfig) -> None:
        D, N, H = c.embed, c.heads, c.head_dim
        into = ("BTD,NHD->BTNH", (N, H, D), ("heads", "head_dim", "embed"))
        self.q_proj = blocks.Einsum(*into, bias=True)
        self.k_proj = blocks.Einsum(*into, bias=True)
        self.v_proj = blocks.Einsum(*into, bias=True)
        out_of = ("BTNH,DNH->BTD", (D, N, H), ("embed", "heads", "head_dim"))
        self.o_proj = blocks.Einsum(*out_of, bias=True)

    def __call__(self, x: jax.Array, length: jax.Array, layout: Layout) -> jax.Array:
        q, k, v = (project(x, layout) for project in (self.q_proj, self.k_proj, self.v_proj))
        heads = layout.spec(blocks.activation_axes("BTNH"))
        attend = jax.shard_map(
            encoder.attend_both_ways,
            mesh=layout.mesh,
            in_specs=(heads, heads, heads, PartitionSpec(layout.mesh_axis("batch"))),
            out_specs=heads,
            check_vma=False,
        )
        return self.o_proj(attend(q, k, v, length), layout)


class MLP(nnx.Module):
    def __init__(self, c: EncoderConfig) -> None:
        D, F = c.embed, c.mlp
        self.activation: Activation = c.activation
        self.up_proj = blocks.Einsum("BTD,FD->BTF", (F, D), ("mlp", "embed"), bias=True)
        self.down_proj = blocks.Einsum("BTF,DF->BTD", (D, F), ("embed", "mlp"), bias=True)

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        return self.down_proj(blocks.activate(self.up_proj(x, layout), self.activation), layout)


class Layer(nnx.Module):
    """Norms come after what is added: norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, c: EncoderConfig) -> None:
        self.self_attn = Attention(c)
        self.attention_norm = LayerNorm(c.embed, c.norm_eps)
        self.mlp = MLP(c)
        self.output_norm = LayerNorm(c.embed, c.norm_eps)

    def __call__(self, x: jax.Array, length: jax.Array, layout: Layout) -> jax.Array:
        x = self.attention_norm(x + self.self_attn(x, length, layout))
        return self.output_norm(x + self.mlp(x, layout))


class Bert(nnx.Module):
    """A blueprint: `hidden` runs the layers over whole texts."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.embed_tokens = blocks.Embedding(config.vocab, config.embed)
        self.embed_positions = Table(config.positions, config.embed)
        self.embed_types = Table(config.types, config.embed)
        self.embed_norm = LayerNorm(config.embed, config.norm_eps)
        self.layers = nnx.List([Layer(config) for _ in range(config.layers)])

    def hidden(
        self, tokens: jax.Array, length: jax.Array, layout: Layout, dtype: jnp.dtype
    ) -> jax.Array:
        """The last layer's output [R, T, D] in `dtype`.

        Args:
          tokens: [R, T] int32 ids in [0, V), padded with any. T is at most the config's context.
          length: [R] int32, real tokens of each row.
        """
        config = self.config
        x = self.embed_tokens(tokens, layout, dtype) + self.embed_types(0, 1, dtype)
        x = x + self.embed_positions(config.first_position, tokens.shape[1], dtype)
        x = self.embed_norm(x)

        def apply(layer: Layer, x: jax.Array, length: jax.Array) -> jax.Array:
            return layer(x, length, layout)

        run = traced_once(apply)
        for layer in self.layers:
            x = run(layer, x, length)
        return x


_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
"""Of Hugging Face's config classes; the padding id is 0 for BERT and 1 for RoBERTa."""


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
    """Numbers from the config.json of a BERT, RoBERTa or XLM-RoBERTa encoder.

    Raises:
      ConfigError: a number is missing, or the encoder does what is not done here.
    """
    entries = Entries(hf, "bert", _DEFAULTS)
    entries.refuse("is_decoder", "add_cross_attention")
    if (kind := hf.get("position_embedding_type") or "absolute") != "absolute":
        raise ConfigError(
            f"config.json has position_embedding_type {kind!r}: supported for bert is absolute"
        )
    skips = hf.get("model_type") != "bert"
    return EncoderConfig(
        family="bert",
        vocab=entries.integer("vocab_size"),
        embed=entries.integer("hidden_size"),
        mlp=entries.integer("intermediate_size"),
        layers=entries.layers(),
        heads=entries.integer("num_attention_heads"),
        positions=entries.integer("max_position_embeddings"),
        first_position=entries.integer("pad_token_id", 1) + 1 if skips else 0,
        types=entries.integer("type_vocab_size"),
        norm_eps=entries.positive("layer_norm_eps"),
        activation=entries.activation(),
    )


_TOP = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "embed_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
}

_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "output_norm": "output.LayerNorm",
}
"""Our modules -> Hugging Face's."""


def hf_names(config: EncoderConfig) -> Names:
    """Every parameter is a tensor of its own, under names without a prefix."""
    return {
        name: (Part(_published(name), stored_shape(one)),)
        for name, one in weights(Bert(config)).items()
    }


def _published(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
        return f"encoder.layer.{match[1]}.{_LAYER[match[2]]}.{kind}"
    return f"{_TOP[module]}.{kind}"


FAMILY = Family(
    name="bert",
    title="BERT, RoBERTa and XLM-RoBERTa encoders",
    model_types=("bert", "roberta", "xlm-roberta"),
    examples=(
        "sentence-transformers/all-MiniLM-L6-v2",
        "BAAI/bge-small-en-v1.5",
        "intfloat/multilingual-e5-small",
    ),
    read_config=read_config,
    blueprint=Bert,
    hf_names=hf_names,
    kind="encoder",
    ignored=(r"pooler\.dense\.(weight|bias)",),
)
