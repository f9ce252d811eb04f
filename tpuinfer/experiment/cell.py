"""What is tried: a model on a mesh under a table of rules, with so many slots."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from tpuinfer.config import EngineConfig, check_dtype
from tpuinfer.errors import ConfigError
from tpuinfer.planning import topology as slices
from tpuinfer.sharding.mesh import MeshShape, parse_mesh
from tpuinfer.sharding.presets import load_rules
from tpuinfer.sharding.rules import ShardingRules

DEFAULT_RULES = "1d"

Tables = (
    str | Path | ShardingRules | Sequence[str | Path] | Mapping[str, str | Path | ShardingRules]
)
"""Rules as a grid takes them: presets and TOML files by name, or tables by names of one's own."""


class Others(TypedDict, total=False):
    """What all cells of a grid have alike, each as the flag of that name takes it.

    `steps` is of decode, in one dispatch; None = the platform's own.
    """

    weights: str
    ring: str
    dtype: str
    context: int | str | None
    context_policy: str
    sinks: int
    attention: str
    steps: int | None


@dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
      model: a name, or a path of a checkpoint or a config.json.
      topology: a slice that is described, such as v5e:4x4; None = the devices here.
      mesh: how the slice, or the devices, are laid out.
      rules: what the table is called. table: the table itself.
      slots: as `--slots` has it, with the context where that is given apart. engine: what these,
        the context and the ring say, read.
      weights, dtype: as the flags of these names.
      steps: decode steps in one dispatch; None = by the platform.
      compile: of a slice: ask the TPU compiler.
    """

    model: str
    topology: str | None
    mesh: MeshShape
    rules: str
    table: ShardingRules
    slots: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: str = "auto"
    dtype: str = "auto"
    steps: int | None = None
    compile: bool = False

    @property
    def key(self) -> str:
        """16 hexadecimal digits of all that decides the outcome: of the table, what it says.

        Not in it: what the table is called, the devices here, versions, and what a model's files
        hold.
        """
        return digest({name: one for name, one in self.as_json().items() if name != "rules"})

    def as_json(self) -> dict[str, Any]:
        """The cell as a record has it."""
        return {
            "model": self.model,
            "topology": self.topology,
            "mesh": dict(self.mesh.axes),
            "rules": self.rules,
            "table": table_data(self.table),
            "slots": self.slots,
            "context": self.engine.classes[-1].context,
            "fit": self.engine.fit,
            "context_policy": self.engine.context_policy,
            "sinks": self.engine.sinks,
            "ring": self.engine.ring,
            "attention": self.engine.attention,
            "weights": self.weights,
            "dtype": self.dtype,
            "steps": self.steps,
            "compile": self.compile,
        }

    def __str__(self) -> str:
        place = f"{self.topology} " if self.topology else ""
        return f"{place}{slices.written(self.mesh)}, {self.rules}, {self.slots}"


def grid(
    model: str,
    meshes: Sequence[str] = ("1",),
    rules: Tables = DEFAULT_RULES,
    slots: Sequence[str] = ("8",),
    topology: str | Sequence[str] | None = None,
    **others: Unpack[Others],
) -> list[Cell]:
    """Every mesh under every table with all slots: topologies vary slowest, slots fastest.

    Args:
      meshes: each as `--mesh` takes it: "8", "2x4", "data=2,expert=4,model=2"; of a topology also
        "all": every way to lay data and model over it.
      rules: names of presets and TOML files, or tables by names of one's own; those that say the
        same are one, under the first name.
      slots: each as `--slots` takes it, such as "8x256" or "48x2048,8x16384".
      topology: a slice to plan for, or several; None = the devices here.

    Raises:
      MeshError: a mesh, a table or a topology that nothing can be made of. ConfigError: slots or
        another value. What only does not suit the others is found by the sweep, cell by cell.
    """
    places: list[str | None] = [None]
    if topology is not None:
        names = topology.split(",") if isinstance(topology, str) else list(topology)
        places = [str(one) for one in slices.several(",".join(names))]
    tables = tables_of(rules)
    weights, dtype = others.pop("weights", "auto"), check_dtype(others.pop("dtype", "auto"))
    steps, context = others.pop("steps", None), others.pop("context", None)
    if steps is not None and steps < 1:
        raise ConfigError(f"steps is {steps}: at least 1; nearest: 1")
    wanted: dict[str, Any] = dict(others)
    engines = {text: EngineConfig.parse(text, context, **wanted) for text in _several(slots)}
    if context is not None:
        engines = {_with_context(text, context): one for text, one in engines.items()}
    cells = [
        Cell(model, place, shape, name, tables[name], text, engines[text], weights, dtype, steps)
        for place in places
        for shape, name, text in itertools.product(_shapes(meshes, place), tables, engines)
    ]
    return unique(cells)


def tables_of(rules: Tables) -> dict[str, ShardingRules]:
    """Tables by name; a file is called by its stem, or, where two have the same, by its path.

    Raises:
      MeshError: an unknown preset or a bad table. ConfigError: a file cannot be read, or none is
        named.
    """
    if isinstance(rules, ShardingRules):
        return {"rules": rules}
    if isinstance(rules, Mapping):
        return {name: load_rules(one) for name, one in rules.items()}
    texts = [str(one) for one in ([rules] if isinstance(rules, str | Path) else rules)]
    texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not texts:
        raise ConfigError(f"rules is {rules!r}: name a preset or a TOML file; nearest: 1d")
    stems = [Path(text).stem for text in texts]
    return {
        stem if stems.count(stem) == 1 else text: load_rules(text)
        for text, stem in zip(texts, stems, strict=True)
    }


def table_data(table: ShardingRules) -> dict[str, Any]:
    """What a table says, as JSON: axes that are cut, each with a list of mesh axes."""
    return {
        "axes": {axis: list(places) for axis in table.axes if (places := table.places(axis))},
        "fallback": dict(table.fallback),
        "reduce": table.reduce,
        "gather": list(table.gather),
        "prefill": None if table.prefill is None else table_data(table.prefill),
    }


def unique(cells: Sequence[Cell]) -> list[Cell]:
    """The cells in their order, each once: of those that only their tables' names tell apart the
    first.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.key, cell)
    return list(found.values())


def digest(value: Any) -> str:
    """16 hexadecimal digits of JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shapes(meshes: Sequence[str], topology: str | None) -> list[MeshShape]:
    found: list[MeshShape] = []
    for text in _several(meshes):
        if text == "all":
            if topology is None:
                raise ConfigError("meshes is 'all': that goes with a topology; nearest: 1,2,4,8")
            found += slices.meshes(slices.parse(topology))
        else:
            found.append(parse_mesh(text))
    return found


def _several(given: Sequence[str] | str | int) -> list[str]:
    """A list of texts, were it one alone."""
    return [str(one).strip() for one in ([given] if isinstance(given, str | int) else given)]


def _with_context(text: str, context: int | str) -> str:
    """Slots that say their length themselves, so that people read it; auto has no such form."""
    return text if "x" in text or text == "auto" else f"{text}x{context}"


def replaced(cells: Sequence[Cell], **changes: Any) -> list[Cell]:
    """The same cells with something else in all of them."""
    return [dataclasses.replace(cell, **changes) for cell in cells]
