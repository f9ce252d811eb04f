"""Records without a sweep, and a stand-in for what runs a cell."""

from typing import Any

import numpy as np

from tpuinfer.errors import OutOfMemoryError
from tpuinfer.experiment.cell import Cell, grid
from tpuinfer.experiment.record import Record

GB = 10**9

WHERE = {
    "how": "ran",
    "platform": "cpu",
    "device_kind": "cpu",
    "devices": 4,
    "simulated": True,
    "weights": "random",
    "jax": "0",
    "libtpu": None,
}


def cells(meshes=("1", "2"), rules=("1d", "data"), slots=("4x64",), model="tiny") -> list[Cell]:
    return grid(model, meshes, rules, slots)


def program(step: float | None = 2.0, bound: float = 1.0, **others: Any) -> dict[str, Any]:
    """A program whose median took `step` ms; None = it did not run."""
    measured = None
    if step is not None:
        measured = {"median": step, "p10": 0.9 * step, "p90": 1.2 * step, "samples": 5}
    return {
        "ideal_bytes": 10,
        "traffic_bytes": None,
        "traffic_ratio": None,
        "collectives": {
            "all-gather": {"count": 3, "bytes": 3000},
            "reduce-scatter": {"count": 2, "bytes": 2000},
        },
        "counted": "compiled",
        "bound_ms": bound,
        "bound": {"weights": bound, "flops": 0.1, "rings": 0.0, "links": None},
        "limit": "memory",
        "bound_from": "measured",
        "measured_ms": measured,
        **others,
    }


def fields(step: float | None = 2.0, **others: Any) -> dict[str, Any]:
    """What a cell's run gives."""
    return {
        "status": "ok",
        "compile_seconds": {"decode": 1.5, "prefill_1x64": None},
        "hbm": {
            "weights": 3 * GB,
            "rings": 2 * GB,
            "state": GB // 2,
            "temporaries": GB,
            "headroom": 3 * GB // 2,
            "capacity": 8 * GB,
            "estimated": [],
        },
        "programs": {"decode": program(step), "prefill_1x64": program(7.0)},
        "replicated": [],
        "layout": "lies-so",
        **others,
    }


def record(cell: Cell, step: float | None = 2.0, **others: Any) -> Record:
    given = {"where": WHERE, **fields(step), **others}
    return Record(cell.key, cell.as_json(), **given)


def records(count: int) -> list[Record]:
    """So many cells, on meshes of two tables each; the last is refused."""
    meshes = [str(1 + at) for at in range(-(-count // 2))]
    made = [record(cell, 1.0 + at) for at, cell in enumerate(cells(meshes)[:count])]
    nothing = {"programs": {}, "hbm": None, "compile_seconds": {}, "layout": None}
    made[-1] = record(cells(meshes)[count - 1], status="refused", why="it cannot be", **nothing)
    return made


class Stand:
    """In place of `running.run`: notes the cells it is asked for, and answers at once.

    Attributes:
      fail: by mesh, what is raised there.
      bits: added to the logits of a cell, by table.
    """

    def __init__(self, **fail: BaseException) -> None:
        self.ran: list[str] = []
        self.fail: dict[str, BaseException] = fail
        self.bits: dict[str, float] = {}

    def __call__(self, cell: Cell, source: Any) -> tuple[dict[str, Any], np.ndarray]:
        name = f"{cell.mesh.size}/{cell.rules}"
        if (error := self.fail.get(name)) is not None:
            raise error
        self.ran.append(name)
        logits = np.log(np.full((4, 8), 0.125, np.float32)) + self.bits.get(cell.rules, 0)
        return fields(layout=f"on {cell.mesh.size}"), logits.astype(np.float32)


def too_much() -> OutOfMemoryError:
    return OutOfMemoryError("weights take 9 GB")
