"""Log-probabilities of the whole vocabulary after every token of a chunk; no part of serving.

The closed set makes nothing of size [C, V]. Who compares two models needs all of it, and runs this
program over rings of its own: the blocks, the rings and their rounding are those that serve.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.cache.held import Rings, Rows, horizons
from tpuinfer.cache.ring import RingAttention
from tpuinfer.models.blueprint import abstract_params, bind
from tpuinfer.models.decoder import Decoder
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.compile import ProgramSpec
from tpuinfer.programs.rows import everywhere, pad_rows, unpad_rows
from tpuinfer.programs.state import shaped
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.layout import Layout

NAME = "log_probs"
DECODE_NAME = "log_probs_decode"

Mode = Literal["prefill", "decode"]


def log_probs_spec(
    blueprint: Decoder,
    layout: Layout,
    rings: tuple[Rings, ...],
    *,
    settings: PlatformSettings,
    dtype: str,
    width: int,
    schemes: Mapping[str, Scheme],
    mode: Mode = "prefill",
) -> ProgramSpec:
    """The program (params, rings, tokens, start, length) -> rings, log-probabilities.

    One row for each data shard, in the first slot of its own: tokens [R, width] int32, start and
    length [R] int32; log-probabilities [R, width, V] float32, those of padding of no meaning.

    Args:
      rings: abstract, of each layer; of one slot a data shard if the mode is "decode".
      mode: in which form tokens go through the model; "decode" takes one at a time (width 1).
    """
    assert mode == "prefill" or width == 1, "a decode takes one token of each row"
    layout = layout.prefill if mode == "prefill" else layout
    shards, whole = layout.shards("batch"), NamedSharding(layout.mesh, PartitionSpec())
    attend = RingAttention(layout, settings.block, mode, settings.attention)

    def log_probs(
        params: Mapping[str, Any],
        rings: tuple[Rings, ...],
        tokens: jax.Array,
        start: jax.Array,
        length: jax.Array,
    ) -> tuple[tuple[Rings, ...], jax.Array]:
        model = bind(blueprint, params)
        slot = jnp.zeros(shards, jnp.int32)
        rows = Rows(slot, start, length, horizons(rings, slot, shards))
        if mode == "decode":
            rows, tokens = jax.tree.map(
                lambda x: pad_rows(x, shards, settings.min_rows), everywhere((rows, tokens), layout)
            )
        x, rings = model.hidden(tokens, rings, rows, attend, layout, jnp.dtype(dtype))
        x = x.reshape(tokens.shape[0] * width, -1)
        logits = unpad_rows(model.logits(x, layout), shards, width)
        return rings, jax.nn.log_softmax(logits).reshape(shards, width, -1)

    one = shaped((shards,), jnp.int32, whole)
    return ProgramSpec(
        NAME if mode == "prefill" else DECODE_NAME,
        log_probs,
        (
            abstract_params(blueprint, layout, dtype, schemes),
            rings,
            shaped((shards, width), jnp.int32, whole),
            one,
            one,
        ),
        (jax.tree.map(lambda x: x.sharding, rings), layout.sharding(("batch", None, "vocab"))),
        settings.compiler_options,
        precision=settings.float32_precision if dtype == "float32" else None,
    )
