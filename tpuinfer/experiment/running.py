"""A cell on the devices that are here: compiled, measured, and its logits read."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from tpuinfer.benchmark import limits
from tpuinfer.benchmark.bounds import Cost, Machine, model_cost
from tpuinfer.benchmark.floor import ring_bytes
from tpuinfer.engine import footprint
from tpuinfer.engine.build import Params
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.memory import as_mesh_error, usable_bytes
from tpuinfer.engine.plan import Plan, abstract_device, abstract_weights, specs_of
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.experiment import described, probe, timing
from tpuinfer.experiment.cell import Cell
from tpuinfer.experiment.source import Source
from tpuinfer.planning import as_json, compiled, memory, running, work
from tpuinfer.planning.answer import reckoned
from tpuinfer.planning.compiled import Measured
from tpuinfer.planning.question import Question
from tpuinfer.programs.closed_set import decode_name
from tpuinfer.programs.compile import Program, compile_programs
from tpuinfer.programs.state import zeros

_LESS = "fewer slots, a shorter context or a larger mesh need less"


def where(cell: Cell, source: Source) -> dict[str, Any]:
    """Of a record: on what, and how. Starts the devices."""
    device = jax.devices()[0]
    return {
        "how": "ran",
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": cell.mesh.size,
        "simulated": device.platform == "cpu" and cell.mesh.size > 1,
        "weights": source.origin,
    }


def run(cell: Cell, source: Source) -> tuple[dict[str, Any], probe.Logits]:
    """The fields of a record that are the cell's own, and its logits.

    Raises:
      MeshError, ConfigError: what cannot work; OutOfMemoryError: too much for the devices.
    """
    plan = _with_steps(source.plan(cell), cell.steps)
    refuse_too_much(plan)
    params = source.params(plan)
    programs, (decode, chunks) = _timed(plan, params)
    logits = probe.read(plan, params)
    measured = {decode_name(): decode, _chunk_name(programs): chunks}
    entries = [one.entry for one in programs.values()]
    figures = _figures(cell, plan, programs)
    for name, one in figures.items():
        one["measured_ms"] = timing.in_short(measured.get(name, ()))
    fields = {
        "status": "ok",
        "compile_seconds": {
            one.name: None if one.cache == "hit" else one.compile_seconds for one in entries
        },
        "hbm": _hbm(plan, entries),
        "programs": figures,
        "replicated": [
            {"axis": axis, "why": one.why}
            for axis, one in plan.layout.decisions.items()
            if "divide" in one.why
        ],
        **described.placed(plan, cell),
    }
    return fields, logits


def refuse_too_much(plan: Plan) -> None:
    """Before a weight is read: a CPU would swap, not refuse.

    Raises:
      OutOfMemoryError: weights, rings and state are more than a device has.
    """
    found, have = sum(one.bytes for one in footprint.shares(plan)), usable_bytes(plan.layout.mesh)
    if found > have:
        raise OutOfMemoryError(
            f"weights, rings and state take {found / 1e9:.2f} GB of a device's {have / 1e9:.2f}"
        )


def _with_steps(plan: Plan, steps: int | None) -> Plan:
    if steps is None:
        return plan
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, steps=steps))


def _timed(
    plan: Plan, params: Params
) -> tuple[dict[str, Program], tuple[list[float], list[float]]]:
    """The programs that a plan is judged by, and the times of decode and of a chunk."""
    names = compiled.shown(plan)
    state, tables = abstract_device(plan)
    try:
        found = compile_programs([spec for spec in specs_of(plan) if spec.name in names])
        programs = {name: found[name] for name in names}
        runner = DeviceRunner(
            params,
            zeros(state),
            zeros(tables),
            programs,
            layout=plan.slots,
            buckets=plan.buckets,
            steps=plan.settings.steps,
            rolls=plan.rolls,
        )
        times = timing.measure(runner, plan.settings.steps)
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), _LESS) from error
    return programs, times


def _chunk_name(programs: Mapping[str, Program]) -> str:
    return next(name for name in programs if name != decode_name())


def _hbm(plan: Plan, entries: Sequence[Any]) -> dict[str, Any]:
    """Bytes of one device; simulated ones share half of the machine's memory."""
    found = dict.fromkeys(("weights", "rings", "state", "scratch"), 0)
    for share in footprint.shares(plan, entries):
        found[share.kind] += share.bytes
    capacity = usable_bytes(plan.layout.mesh)
    temporaries = found.pop("scratch")
    return {
        **found,
        "temporaries": temporaries,
        "headroom": capacity - sum(found.values()) - temporaries,
        "capacity": capacity,
        "estimated": [],
    }


def _figures(cell: Cell, plan: Plan, programs: Mapping[str, Program]) -> dict[str, dict[str, Any]]:
    """What the programs move, and the least time for it: by the chip's figures, or measured."""
    mesh = plan.layout.mesh
    assert isinstance(mesh, Mesh), "what runs has devices"
    topology = running.topology_of(mesh)
    counted = {name: _counted(plan, one) for name, one in programs.items()}
    if topology is not None:
        asked = Question(
            cell.model, plan.published, topology, cell.mesh, engine=plan.engine, steps=cell.steps
        )
        measured = {name: one for name, one in counted.items() if one is not None}
        found = reckoned(asked, plan, memory.estimate(plan, topology), measured)
        told = as_json.as_json(found)["programs"]
        return {name: described.figures(told[name]) for name in programs}
    machine = _machine(mesh, plan.dtype)
    return {
        name: _by_machine(plan, name, one, counted[name], machine) for name, one in programs.items()
    }


def _counted(plan: Plan, program: Program) -> Measured | None:
    """What the compiled program moves; None = its text cannot be read."""
    try:
        return compiled.measured(plan, program.name, program.call, program.entry.compile_seconds)
    except (ValueError, KeyError, IndexError, AssertionError, NotImplementedError):
        return None


def _by_machine(
    plan: Plan, name: str, program: Program, counted: Measured | None, machine: Machine
) -> dict[str, Any]:
    """Figures on devices that no table knows: of a CPU bytes through memory mean little."""
    needed = _needed(plan, name)
    cost = _cost(plan, name)
    parts = {
        "weights": 1e3 * cost["weights"].seconds(machine),
        "flops": 1e3 * cost["all"].flops / machine.matmul,
        "rings": 1e3 * (cost["all"].bytes - cost["weights"].bytes) / machine.bandwidth,
        "links": None,
    }
    by = cost["all"].bound_by(machine)
    return {
        "ideal_bytes": needed.bytes,
        "traffic_bytes": None,
        "traffic_ratio": None,
        "collectives": None
        if counted is None
        else {
            kind: {"count": one.count, "bytes": one.nbytes}
            for kind, one in counted.collectives.items()
        },
        "bound_ms": 1e3 * cost["all"].seconds(machine),
        "bound": parts,
        "limit": {"memory": "memory", "matmul": "FLOPs"}[by],
        "temp_bytes": program.entry.temp_bytes,
        "flops": dict(needed.flops),
        "counted": None if counted is None else "compiled",
        "bound_from": "measured",
        "measured_ms": None,
    }


def _needed(plan: Plan, name: str) -> work.Work:
    if name == decode_name():
        return work.decode(plan)
    rows, width = name.removeprefix("prefill_").split("x")
    return work.prefill(plan, int(rows), int(width))


def _cost(plan: Plan, name: str) -> dict[str, Cost]:
    """What all devices together cannot do without; "weights": their part, to read them."""
    cost = model_cost(plan.config, abstract_weights(plan), ring_bytes(plan))
    weights = Cost(cost.read_bytes, 0.0)
    if name == decode_name():
        classes = zip(plan.slots.counts, plan.slots.capacities, strict=True)
        parts = [cost.decode(count, capacity) for count, capacity in classes]
        rows = [one + Cost(-cost.read_bytes, 0.0) for one in parts]
        return {"weights": weights, "all": sum(rows, weights)}
    rows_, width = map(int, name.removeprefix("prefill_").split("x"))
    prompts = rows_ * plan.layout.shards("batch")
    start = max(0, plan.context - width)
    whole, before = cost.prefill(start + width), cost.prefill(start) if start else Cost(0.0, 0.0)
    chunk = Cost(0.0, whole.flops - before.flops)
    seen = plan.context * plan.config.layers * cost.ring_bytes
    return {"weights": weights, "all": weights + (chunk + Cost(seen, 0.0)) * prompts}


def _machine(mesh: Mesh, dtype: str) -> Machine:
    """What all devices of a mesh can do; devices that a CPU simulates share what one can."""
    device = mesh.devices.flat[0]
    one, count = _limits(device, dtype), 1 if device.platform == "cpu" else mesh.size
    return Machine(count * one.bandwidth, count * one.matmul)


@functools.lru_cache(maxsize=8)
def _limits(device: jax.Device, dtype: str) -> Machine:
    """Measured once in a process, a second: else bounds would differ by noise from mesh to mesh."""
    return Machine(limits.read_bandwidth(device), limits.matmul_rate(device, dtype))
