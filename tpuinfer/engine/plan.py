"""What is decided before a weight is read: what runs, how large it is, and where it lies."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from tpuinfer.cache.spec import RingSpec
from tpuinfer.config import EngineConfig, check_dtype
from tpuinfer.engine import kept
from tpuinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_IDS
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, pieces, weights
from tpuinfer.ops.steering import Tables
from tpuinfer.platform import (
    PlatformSettings,
    for_attention,
    for_context,
    platform_settings,
)
from tpuinfer.programs.buckets import default_buckets
from tpuinfer.programs.closed_set import program_specs
from tpuinfer.programs.compile import ProgramSpec
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.programs.state import DecodeState, abstract_state, abstract_tables
from tpuinfer.quant.schemes import NONE, Scheme
from tpuinfer.sharding.layout import Layout, resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh, platform_of
from tpuinfer.sharding.report import Placement, Sized, place
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.sharding.simulate import prepare_cpu_devices

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Everything decided before a weight is read: what runs, how large, and where it lies.

    Attributes:
      path: the checkpoint directory; None when the weights come from elsewhere.
      config: of the model as it lies on the mesh: with `layout.repeats` times its KV heads.
      dtype: of weights and activations.
      slots: how many, how long. rings: for each layer, one spec per class of slots.
      schemes: of the weights that are quantised, by name.
    """

    path: Path | None
    config: ModelConfig
    layout: Layout
    settings: PlatformSettings
    dtype: str
    slots: SlotLayout
    rings: tuple[tuple[RingSpec, ...], ...]
    engine: EngineConfig
    schemes: Mapping[str, Scheme] = field(default_factory=dict)

    @property
    def published(self) -> ModelConfig:
        """The model's config with the KV heads that it has: what another plan is made from."""
        kv_heads = self.config.kv_heads // self.layout.repeats
        return dataclasses.replace(self.config, kv_heads=kv_heads)

    @property
    def context(self) -> int:
        """Tokens a request may have before the context policy steps in."""
        return self.slots.capacity

    @property
    def rolls(self) -> bool:
        return self.engine.context_policy == "roll"

    @property
    def buckets(self) -> tuple[int, ...]:
        """Widths of prefill; the last is the chunk."""
        chunk = self.settings.chunk
        return default_buckets(chunk, min(chunk, self.settings.smallest_bucket))

    def placements(self) -> list[Placement]:
        """Where each weight and ring lies, how large its part is, and why."""
        blueprint, abstract = registry.build(self.config), abstract_weights(self)
        named = {}
        for name, w in weights(blueprint).items():
            scheme = str(self.schemes.get(name, self.dtype))
            named[name] = Sized(w.shape, w.axes, scheme, pieces(abstract[name], w.axes))
        rings = {
            f"layers.{layer}.{name}.{part}": kept.sized(spec)
            for part in ("keys", "values")
            for layer, classes in enumerate(self.rings)
            for name, spec in zip(self._ring_names(layer), classes, strict=True)
        }
        return place(self.layout, named | rings)

    def _ring_names(self, layer: int) -> list[str]:
        """Of a layer's rings: by the tokens of their class where there are several, and by window.

        Rings of one name are of one shape: they share a row of the report.
        """
        names = []
        for index, spec in enumerate(self.rings[layer]):
            tokens = f"_{self.slots.capacities[index]}" if len(self.rings[layer]) > 1 else ""
            longest = max(classes[index].length for classes in self.rings)
            window = f"_window_{spec.window}" if spec.length < longest else ""
            names.append(f"ring{tokens}{window}")
        return names


def plan_of(
    config: ModelConfig,
    *,
    mesh: str | int | Mesh | AbstractMesh = 1,
    rules: ShardingRules | None = None,
    dtype: str = "auto",
    weights: str | Mapping[str, Scheme] = NONE,
    engine: EngineConfig | None = None,
    settings: PlatformSettings | None = None,
) -> Plan:
    """Lay a model of these sizes out on the mesh; no checkpoint is needed.

    Args:
      mesh: its shape; or a mesh of devices, which may be described ones that are not there; or one
        without devices, for a plan that nothing is compiled for.
      weights: how they are kept, as `quant.schemes` says, or the scheme of each that is quantised.
      settings: what suits the platform; None = what is known of it.

    Raises:
      ConfigError, MeshError: what cannot work.
    """
    engine = engine or EngineConfig()
    asked = check_dtype(dtype)
    if not isinstance(mesh, Mesh | AbstractMesh):
        shape = parse_mesh(mesh)
        prepare_cpu_devices(shape.size)
        mesh = build_mesh(shape)
    layout = resolve(rules or ShardingRules(), mesh, registry.axis_sizes(config, engine.slots))
    settings = settings or platform_settings(platform_of(mesh), mesh.size)
    settings = for_attention(settings, engine.attention)
    if engine.attention == "pallas" and settings.attention == "reference":
        _log.info("attention is pallas: the kernels are for TPUs; XLA's own attention is used")
    width = settings.dtype if asked == "auto" else asked
    schemes = kept.schemes_of(config, layout, weights)
    return sized(config, layout, engine, settings=settings, dtype=width, schemes=schemes)


def sized(
    config: ModelConfig,
    layout: Layout,
    engine: EngineConfig,
    *,
    settings: PlatformSettings,
    dtype: str,
    schemes: Mapping[str, Scheme],
) -> Plan:
    """A plan with these slots, on a mesh that is settled.

    Args:
      config: with the KV heads that the model has, of which the layout may keep several copies.
      settings: the platform's own, before they are shrunk to the slots.

    Raises:
      ConfigError: slots or contexts that cannot be.
    """
    config = dataclasses.replace(config, kv_heads=config.kv_heads * layout.repeats)
    slots = SlotLayout(
        tuple(one.slots for one in engine.classes),
        _contexts(config, engine, settings),
        layout.shards("batch"),
    )
    rolls = engine.context_policy == "roll"
    if rolls and engine.sinks > slots.capacities[0] // 4:
        raise ConfigError(
            f"sinks is {engine.sinks}, of a context of {slots.capacities[0]}: at most a quarter "
            f"may stay; nearest: {slots.capacities[0] // 4}"
        )
    settings = for_context(settings, slots.capacities[0], slots.capacity, rolls)
    parts = layout.shards("length")
    rings = tuple(
        kept.rings_of(config, layer, slots, settings, dtype, engine, parts=parts)
        for layer in range(config.layers)
    )
    if config.settled(slots.capacity) != config:
        _log.info(
            "context %d is beyond this model's original one: longrope's long factors hold "
            "from the first token on, for short texts too",
            slots.capacity,
        )
    config = config.settled(slots.capacity)
    return Plan(None, config, layout, settings, dtype, slots, rings, engine, schemes)


def abstract_weights(plan: Plan) -> dict[str, Any]:
    """Every parameter as ShapeDtypeStructs, or QArrays of them: what a checkpoint loads into."""
    return abstract_params(registry.build(plan.config), plan.layout, plan.dtype, plan.schemes)


def repeated(plan: Plan) -> dict[str, int]:
    """The parameters whose heads are kept several times, in their first dimension: how often."""
    if plan.layout.repeats == 1:
        return {}
    names = weights(registry.build(plan.config)).items()
    return {name: plan.layout.repeats for name, w in names if w.axes[0] == "kv_heads"}


def abstract_device(plan: Plan) -> tuple[DecodeState, Tables]:
    """What lives on the devices beside the weights, abstract."""
    state = abstract_state(
        plan.rings, plan.layout, vocab=plan.config.vocab, max_stop_ids=MAX_STOP_IDS
    )
    return state, abstract_tables(state, MAX_LOGIT_BIAS)


def specs_of(plan: Plan) -> list[ProgramSpec]:
    """Every program that a plan runs, none compiled; needs no device."""
    state, tables = abstract_device(plan)
    return program_specs(
        registry.build(plan.config),
        plan.layout,
        state,
        tables,
        settings=plan.settings,
        dtype=plan.dtype,
        buckets=plan.buckets,
        schemes=plan.schemes,
    )


def _contexts(
    config: ModelConfig, engine: EngineConfig, settings: PlatformSettings
) -> tuple[int, ...]:
    contexts = []
    for one in engine.classes:
        context = one.context or min(config.context, settings.default_context)
        if context > config.context:
            raise ConfigError(
                f"context is {context}, but the model was made for at most {config.context}; "
                f"nearest: {config.context}"
            )
        contexts.append(context)
    return tuple(contexts)
