"""How the weights and the rings of a plan are kept: what was asked for, as the mesh allows it."""

import math
from collections.abc import Mapping
from typing import Any

from tpuinfer.cache.spec import RING_AXES, SCALE_AXES, RingSpec, ring_length, view
from tpuinfer.config import EngineConfig
from tpuinfer.errors import MeshError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.platform import PlatformSettings
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.quant.qarray import bits_of
from tpuinfer.quant.rows import RINGS
from tpuinfer.quant.schemes import AUTO, NONE, PUBLISHED, Scheme, Schemes
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.report import Sized


def schemes_of(
    config: ModelConfig, layout: Layout, asked: str | Mapping[str, Scheme]
) -> dict[str, Scheme]:
    """The scheme of each weight; groups must be cut over devices as their inputs are.

    Raises:
      ConfigError: the text is no table of schemes. MeshError: groups do not divide.
    """
    able = weights(registry.build(config))
    if not isinstance(asked, str):
        found = dict(asked)
    elif asked in (AUTO, PUBLISHED, NONE):
        found = {}
    else:
        found = Schemes.parse(asked).resolve(able)
    for name, scheme in found.items():
        inner = able[name].axes[-able[name].contracted]
        if inner is None or scheme.group is None:
            continue
        width, size = math.prod(able[name].shape[-able[name].contracted :]), scheme.group
        for one in (layout, layout.prefill):
            shards, places = one.decisions[inner].shards, one.decisions[inner].mesh_axis
            if width // size % shards == 0:
                continue
            while size > 1 and width // size % shards:
                size //= 2
            raise MeshError(
                f"weights: {scheme} cuts rows of {name} into {width // scheme.group} groups, "
                f"which {places}={shards} does not divide; nearest: "
                f"{Scheme(scheme.word, size) if size >= 8 else 'int8'}"
            )
    return found


def rings_of(
    config: ModelConfig,
    layer: int,
    slots: SlotLayout,
    settings: PlatformSettings,
    dtype: str,
    engine: EngineConfig,
    *,
    parts: int = 1,
) -> tuple[RingSpec, ...]:
    """One layer's rings, one per class of slots.

    Sinks are summed apart from the other columns, so a layer has them in all classes or in none:
    a row's bits must not depend on its class. Only rows of the longest class ever roll.

    Args:
      parts: into how many the layout cuts rings along their length.
    """
    window = config.window(layer)
    sees_all = window is None or window >= slots.capacity
    rolls = engine.context_policy == "roll" and sees_all
    wide = settings.ring_dtype or dtype
    kept = None if engine.ring == "auto" else RINGS.get(engine.ring, engine.ring)
    specs = []
    for count, capacity in zip(slots.counts, slots.capacities, strict=True):
        seen = view(capacity, window, rolls=rolls, sinks=engine.sinks)
        specs.append(
            RingSpec(
                slots=count,
                kv_heads=config.kv_heads,
                length=ring_length(seen.columns, settings.block, parts),
                head_dim=config.head_dim,
                dtype=kept or wide,
                window=seen.window,
                sinks=seen.sinks,
                compute=wide if kept in RINGS.values() else None,
            )
        )
    return tuple(specs)


def sized(spec: RingSpec) -> Sized:
    """Keys or values of a ring, for the report."""
    found: list[tuple[Any, Any, int]] = [(spec.shape, RING_AXES, bits_of(spec.dtype))]
    if spec.is_codes:
        found.append((spec.shape[:-1], SCALE_AXES, 32))
    return Sized(spec.shape, RING_AXES, spec.dtype, found)
