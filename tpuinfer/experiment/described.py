"""A cell on a slice that is not here: reckoned, or as the TPU compiler makes it."""

from collections.abc import Mapping
from typing import Any

from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError
from tpuinfer.experiment import probe
from tpuinfer.experiment.cell import Cell
from tpuinfer.planning import as_json, question, travel
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.compiled import Note
from tpuinfer.planning.question import Question
from tpuinfer.sharding import moves

_KEPT = ("weights", "rings", "state", "temporaries", "headroom", "capacity")

_FIGURES = (
    "ideal_bytes",
    "traffic_bytes",
    "traffic_ratio",
    "collectives",
    "bound_ms",
    "bound",
    "limit",
    "temp_bytes",
    "flops",
)


def asked(cell: Cell) -> Question:
    """A cell as the planner takes it.

    Raises:
      ConfigError: no such model, or a slice that no compiler is there for.
    """
    assert cell.topology is not None, "a cell that runs here"
    topology = slices.parse(cell.topology)
    if cell.compile and not topology.is_tpu:
        raise ConfigError(
            f"compile is set, and topology is {topology}: the compiler that needs no device is the "
            "TPU's; nearest: leave out --compile"
        )
    name, config = question.find_model(cell.model)
    return Question(
        name,
        config,
        topology,
        cell.mesh,
        engine=cell.engine,
        weights=cell.weights if cell.weights != "auto" else "none",
        rules=cell.table,
        dtype=cell.dtype,
        steps=cell.steps,
    )


def where(cell: Cell) -> dict[str, Any]:
    """Of a record: on what, and how."""
    assert cell.topology is not None, "a cell that runs here"
    topology = slices.parse(cell.topology)
    return {
        "how": "compiled" if cell.compile else "reckoned",
        "platform": "tpu" if topology.is_tpu else "gpu",
        "device_kind": topology.chip.title,
        "devices": cell.mesh.size,
        "simulated": False,
        "weights": None,
    }


def described(cell: Cell, note: Note | None = None) -> dict[str, Any]:
    """The fields of a record that are the cell's own: figures, and whether it fits.

    Raises:
      MeshError, ConfigError: what cannot work.
    """
    found = answer(asked(cell), compile=cell.compile, note=note)
    told = as_json.as_json(found)
    hbm = {name: told["hbm_per_chip"][name] for name in _KEPT}
    hbm["estimated"] = [name for name in told["estimated"] if name in hbm]
    programs = told["programs"]
    return {
        "status": "ok" if found.fits else "does not fit",
        "why": None if found.fits else _too_much(found),
        "compile_seconds": {
            name: one["compile_seconds"]
            for name, one in programs.items()
            if one["compile_seconds"] is not None
        },
        "hbm": hbm,
        "programs": {name: figures(one) for name, one in programs.items()},
        "replicated": told["replicated"],
        **placed(found.plan, cell),
    }


def placed(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What a record says of where things lie, beside what is not cut."""
    return {
        "repeats": plan.layout.repeats,
        "resharding_bytes": moves.total(travel.resharding(plan)),
        "layout": probe.layout_digest(plan, cell.as_json()),
    }


def figures(program: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of a program of `planning.as_json`."""
    compiled = program["traffic_bytes"] is not None
    return {
        **{name: program[name] for name in _FIGURES},
        "counted": "compiled" if compiled else "reckoned",
        "bound_from": "chip",
        "measured_ms": None,
    }


def _too_much(found: Answer) -> str:
    have = found.hbm.capacity / 1e9
    if found.refused:
        return f"a program takes {found.refused / 1e9:.2f} GB of a device's {have:.2f}"
    return f"arrays take {found.hbm.used / 1e9:.2f} GB of a device's {have:.2f}"
