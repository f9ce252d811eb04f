"""The plan of what runs here, for a start that runs out of memory."""

import dataclasses

from jax.sharding import Mesh

from tpuinfer.engine import footprint, scratch
from tpuinfer.engine.fit import Room
from tpuinfer.engine.memory import usable_bytes
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import TpuinferError
from tpuinfer.planning import as_text, hardware, memory, remedies
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import reckoned
from tpuinfer.planning.question import Question
from tpuinfer.planning.topology import Topology
from tpuinfer.platform import platform_settings
from tpuinfer.sharding.mesh import MeshShape, platform_of


def topology_of(mesh: Mesh) -> Topology | None:
    """The slice that a mesh's devices are, as far as the table of chips knows them."""
    return slice_of(mesh.devices.flat[0].device_kind, mesh.size)


def slice_of(device_kind: str, count: int) -> Topology | None:
    """The slice of so many devices of a kind; None where no table has it."""
    chip = hardware.by_device_kind(device_kind)
    if chip is None:
        return None
    return next((one for one in slices.slices(chip) if one.devices == count), None)


def explain(plan: Plan, name: str, weights: str) -> str:
    """What takes the memory of a device, and what would fit: the plan's table, with remedies.

    Args:
      name: of the model, for people. weights: how they are kept, as `--weights` says.
    """
    mesh = plan.layout.mesh
    assert isinstance(mesh, Mesh), "what runs has devices"
    topology = topology_of(mesh)
    if topology is None:
        return _by_room(plan, usable_bytes(mesh))
    shape = MeshShape(tuple(mesh.shape.items()))
    asked = Question(
        name,
        plan.published,
        topology,
        shape,
        engine=plan.engine,
        weights=weights,
        rules=plan.layout.rules,
        dtype=plan.dtype,
        steps=plan.settings.steps,
    )
    found = reckoned(asked, plan, memory.estimate(plan, topology))
    return as_text.as_text(found, remedies.remedies(asked))


def _by_room(plan: Plan, usable: int) -> str:
    """Of devices that no table knows: their own word for what they have."""
    beside = scratch.temporaries(plan) + scratch.code(plan)
    lines = [
        footprint.render(footprint.shares(plan)),
        f"and some {beside / 1e9:.2f} GB for programs, of {usable / 1e9:.2f} GB that there are",
    ]
    settings = platform_settings(platform_of(plan.layout.mesh), plan.layout.mesh.size)
    room = Room(dataclasses.replace(plan), plan.published, settings, usable)
    try:
        if slots := room.most_slots(plan.context):
            lines.append(f"What would fit: --slots {slots}x{plan.context}")
        if context := room.longest_context(plan.slots.slots):
            lines.append(f"What would fit: --slots {plan.slots.slots}x{context}")
    except TpuinferError:
        pass  # no other slots can be laid out on this mesh
    if len(lines) == 2:
        lines.append("What would fit: a larger mesh, or --weights int8 --ring int8")
    return "\n".join(lines)
