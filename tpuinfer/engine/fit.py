"""How many slots the devices have room for, and how long ones: `--slots auto --context auto`.

slots auto              as many as fit, at most the platform's `most_slots` for each data shard
context auto            the longest with which the slots that were asked for fit
both                    the longest, halving the model's own down to 2048, that leaves room for
16 slots for each data shard; then as many as fit
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

from jax.sharding import AbstractMesh, Mesh

from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.engine import footprint, scratch
from tpuinfer.engine.memory import usable_bytes
from tpuinfer.engine.plan import Plan, plan_of, sized
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.model_config import ModelConfig
from tpuinfer.platform import PlatformSettings, platform_settings
from tpuinfer.sharding.mesh import build_mesh, parse_mesh, platform_of

_ENOUGH_SLOTS = 16
_SHORTEST = 2048


class Room:
    """The memory of one device of a mesh, for one model on it.

    Args:
      plan: how the model lies there, with any slots.
      config: the model, as it was before it was settled on a context, with the KV heads it has.
      settings: the platform's own. usable: bytes of one device that programs may use.
    """

    def __init__(
        self, plan: Plan, config: ModelConfig, settings: PlatformSettings, usable: int
    ) -> None:
        self.usable = usable
        self._plan, self._config, self._settings = plan, config, settings
        self._weights = footprint.weight_bytes(plan)
        self._shards = plan.layout.shards("batch")

    def needed(self, engine: EngineConfig) -> int:
        """Bytes on one device with these slots."""
        plan = sized(
            self._config,
            self._plan.layout,
            engine,
            settings=self._settings,
            dtype=self._plan.dtype,
            schemes=self._plan.schemes,
        )
        scratch_bytes = scratch.temporaries(plan) + scratch.code(plan)
        return self._weights + footprint.slot_bytes(plan) + scratch_bytes

    def most_slots(self, context: int) -> int:
        """The most slots of so many tokens that fit; 0 = not one for each data shard."""
        engine = self._plan.engine

        def fits(count: int) -> bool:
            one = SlotClass(count * self._shards, context)
            return self.needed(dataclasses.replace(engine, classes=(one,))) <= self.usable

        most = _last(fits, self._settings.most_slots)
        whole = self._settings.min_rows
        return (most - most % whole if most > whole else most) * self._shards

    def longest_context(self, slots: int) -> int:
        """The most tokens, in whole blocks, for so many slots; 0 = not one block."""
        engine, block = self._plan.engine, self._settings.block
        blocks = -(-self._config.context // block)

        def tokens(count: int) -> int:
            return min(count * block, self._config.context)

        def fits(count: int) -> bool:
            one = SlotClass(slots, tokens(count))
            return self.needed(dataclasses.replace(engine, classes=(one,))) <= self.usable

        return tokens(_last(fits, blocks))

    def both(self) -> SlotClass:
        """Slots and context where neither is given; no slots = nothing fits."""
        context = self._config.context
        while True:
            slots = self.most_slots(context)
            if slots >= _ENOUGH_SLOTS * self._shards or context <= _SHORTEST:
                return SlotClass(max(1, slots), context) if slots else self._nothing()
            context = max(_SHORTEST, context // 2)

    def settle(self, engine: EngineConfig) -> EngineConfig:
        """Numbers in place of what was left to the memory.

        Raises:
          OutOfMemoryError: nothing fits.
        """
        asked = engine.classes[0]
        if engine.fit == "nothing":
            return engine
        if self._weights >= self.usable:
            self._nothing()
        if engine.fit == "both":
            chosen = self.both()
        elif engine.fit == "slots":
            context = asked.context or min(self._config.context, self._settings.default_context)
            slots = self.most_slots(context)
            chosen = SlotClass(slots, context) if slots else self._nothing()
        else:
            context = self.longest_context(asked.slots)
            chosen = SlotClass(asked.slots, context) if context else self._nothing()
        return dataclasses.replace(engine, classes=(chosen,), fit="nothing")

    def _nothing(self) -> NoReturn:
        beside = scratch.temporaries(self._plan) + scratch.code(self._plan)
        raise OutOfMemoryError(
            f"no slot fits: weights take {self._weights / 1e9:.2f} GB per device, and programs "
            f"some {beside / 1e9:.2f} GB, of {self.usable / 1e9:.2f} GB that there are; a larger "
            "mesh, or --weights int8, needs less"
        )


def plan_to_fit(
    config: ModelConfig,
    *,
    mesh: str | int | Mesh | AbstractMesh,
    engine: EngineConfig,
    usable: int | None = None,
    settings: PlatformSettings | None = None,
    **others: Any,
) -> Plan:
    """As `plan_of`, with what `engine.fit` leaves to the memory of the devices.

    Args:
      usable: bytes of one device; None = what the devices say. others: as `plan_of` takes them.

    Raises:
      OutOfMemoryError: nothing fits. ConfigError, MeshError: as `plan_of`.
    """
    if engine.fit == "nothing":
        return plan_of(config, mesh=mesh, engine=engine, settings=settings, **others)
    if not isinstance(mesh, Mesh | AbstractMesh):
        mesh = build_mesh(parse_mesh(mesh))
    settings = settings or platform_settings(platform_of(mesh), mesh.size)
    context = engine.classes[0].context
    least = dataclasses.replace(engine, classes=(SlotClass(mesh.size, context),), fit="nothing")
    plan = plan_of(config, mesh=mesh, engine=least, settings=settings, **others)
    room = Room(plan, config, settings, usable or usable_bytes(mesh))
    chosen = room.settle(engine)
    return plan_of(config, mesh=mesh, engine=chosen, settings=settings, **others)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The highest of 1..most that `holds`, where all below it do; 0 = none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
