"""Which programs an engine runs, in all its life: known before the first of them is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.models.blueprint import abstract_params
from tpuinfer.models.decoder import Decoder
from tpuinfer.ops.steering import Tables
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.compile import ProgramSpec
from tpuinfer.programs.decode import make_decode
from tpuinfer.programs.prefill import abstract_input, make_prefill
from tpuinfer.programs.state import DecodeState, shaped
from tpuinfer.programs.tables import MASKS_AT_A_TIME, put_bias, put_masks
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.layout import Layout

MASK, BIAS = "mask", "bias"
"""The programs that change the tables of masks and biases."""


def prefill_name(rows: int, bucket: int) -> str:
    """The program that prefills `rows` prompts per data shard, `bucket` tokens wide."""
    return f"prefill_{rows}x{bucket}"


def decode_name(rows: int | None = None) -> str:
    """The program that decodes `rows` slots per data shard; None = all slots."""
    return "decode" if rows is None else f"decode_{rows}"


def prefill_shapes(
    settings: PlatformSettings, buckets: tuple[int, ...], per_shard: int
) -> Mapping[int, tuple[int, ...]]:
    """Bucket -> how many rows per data shard its programs take, ascending; 1 is always there.

    More than one row where they fit `prefill_tokens` and there are that many slots.
    """
    return {
        width: tuple(
            rows
            for rows in settings.prefill_rows
            if rows == 1 or (rows <= per_shard and rows * width <= settings.prefill_tokens)
        )
        for width in buckets
    }


def narrow_rows(settings: PlatformSettings, per_shard: int) -> tuple[int, ...]:
    """Rows per data shard of the narrow decodes: those that save at least half of the full one."""
    return tuple(rows for rows in settings.narrow_rows if 2 * rows <= per_shard)


def program_specs(
    blueprint: Decoder,
    layout: Layout,
    state: DecodeState,
    tables: Tables,
    *,
    settings: PlatformSettings,
    dtype: str,
    buckets: tuple[int, ...],
    schemes: Mapping[str, Scheme] | None = None,
) -> list[ProgramSpec]:
    """Every program: those of the tables, prefill from the widest on, then decode.

    Programs that others check come later. Works on abstract values alone: `state` and `tables` hold
    ShapeDtypeStructs, and no device is needed.

    Args:
      schemes: of the weights that are quantised.
    """
    params = abstract_params(blueprint, layout, dtype, schemes)
    whole = NamedSharding(layout.mesh, PartitionSpec())
    out_shardings = (jax.tree.map(lambda x: x.sharding, state), whole)
    shards, slots, stops = layout.shards("batch"), state.token.shape[0], state.stops.shape[1]
    common: dict[str, Any] = {"settings": settings, "dtype": jnp.dtype(dtype)}

    def spec(name: str, function: Any, *given: Any) -> ProgramSpec:
        host = jax.tree.map(lambda x: shaped(x.shape, x.dtype, whole), given)
        return ProgramSpec(
            name,
            function,
            (params, state, tables, *host),
            out_shardings,
            settings.compiler_options,
            kept=3,
            precision=settings.float32_precision if dtype == "float32" else None,
        )

    prefill = make_prefill(blueprint, layout.prefill, **common)
    shapes = prefill_shapes(settings, buckets, slots // shards)
    sizes = [(rows, width) for width in buckets for rows in shapes[width]]
    specs = _table_specs(tables, whole)
    specs += [
        spec(prefill_name(rows, width), prefill, abstract_input(rows * shards, width, stops))
        for rows, width in sorted(sizes, key=lambda size: (size[0], -size[1]))
    ]
    quotas = shaped((slots,), jnp.int32)
    decode = make_decode(blueprint, layout, **common)
    specs.append(spec(decode_name(), decode, quotas))
    for rows in narrow_rows(settings, slots // shards):
        narrow = make_decode(blueprint, layout, narrow=True, **common)
        specs.append(spec(decode_name(rows), narrow, quotas, shaped((rows * shards,), jnp.int32)))
    return specs


def _table_specs(tables: Tables, whole: NamedSharding) -> list[ProgramSpec]:
    """The programs that change the tables; they take no params and donate nothing."""
    (slots, words), entries = tables.masks.shape, tables.biases.ids.shape[1]
    rows = min(slots, MASKS_AT_A_TIME)

    def spec(name: str, function: Any, table: Any, *given: tuple[tuple[int, ...], Any]) -> Any:
        host = (shaped(shape, dtype, whole) for shape, dtype in given)
        return ProgramSpec(name, function, (table, *host), whole, donated=(), kept=1)

    i32, f32 = jnp.int32, jnp.float32
    return [
        spec(MASK, put_masks, tables.masks, ((rows,), i32), ((rows, words), i32)),
        spec(BIAS, put_bias, tables.biases, ((), i32), ((entries,), i32), ((entries,), f32)),
    ]
