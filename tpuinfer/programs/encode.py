"""Encode: texts, padded to one width, to one vector each. It keeps no state between calls."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.model_config import Pooling
from tpuinfer.models.bert import Bert
from tpuinfer.models.blueprint import abstract_params, bind
from tpuinfer.ops import encoder
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.compile import ProgramSpec
from tpuinfer.programs.state import shaped
from tpuinfer.sharding.layout import Layout

Encode = Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], jax.Array]


def encode_name(rows: int, width: int) -> str:
    """The program that encodes `rows` texts per data shard, `width` tokens wide."""
    return f"encode_{rows}x{width}"


def make_encode(blueprint: Bert, layout: Layout, pooling: Pooling, dtype: jnp.dtype) -> Encode:
    """The program: (params, tokens [R, W] int32, length [R] int32) -> [R, D] float32.

    A row of length 0 is idle; what comes of it means nothing.
    """

    def encode(params: Mapping[str, jax.Array], tokens: jax.Array, length: jax.Array) -> jax.Array:
        model = bind(blueprint, params)
        x = model.hidden(tokens, length, layout, dtype)
        vectors = encoder.pool(x, length, pooling.mode)
        return encoder.normalise(vectors) if pooling.normalise else vectors

    return encode


def encode_specs(
    blueprint: Bert,
    layout: Layout,
    pooling: Pooling,
    *,
    sizes: Sequence[tuple[int, int]],
    dtype: str,
    settings: PlatformSettings,
) -> list[ProgramSpec]:
    """Every program of an encoder, on abstract values alone.

    Args:
      sizes: (rows per data shard, width) of each. settings: what suits the platform.
    """
    params = abstract_params(blueprint, layout, dtype)
    whole = NamedSharding(layout.mesh, PartitionSpec())
    encode = make_encode(blueprint, layout, pooling, jnp.dtype(dtype))
    shards = layout.shards("batch")

    def spec(rows: int, width: int) -> ProgramSpec:
        tokens = shaped((rows * shards, width), jnp.int32, whole)
        length = shaped((rows * shards,), jnp.int32, whole)
        arguments = (params, tokens, length)
        return ProgramSpec(
            encode_name(rows, width),
            encode,
            arguments,
            whole,
            settings.compiler_options,
            donated=(),
            kept=1,
            precision=settings.float32_precision if dtype == "float32" else None,
        )

    return [spec(rows, width) for rows, width in sizes]
