"""Where a table of rules puts a model: all of it, one array, or what another table would move.

Nothing is loaded and no device is asked. Without a topology the mesh is one of TPUs of no kind.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from tpuinfer.engine.fit import plan_to_fit
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError, MeshError
from tpuinfer.experiment import described
from tpuinfer.experiment.as_table import Table
from tpuinfer.experiment.cell import DEFAULT_RULES, grid, tables_of
from tpuinfer.models import registry
from tpuinfer.planning import question, travel
from tpuinfer.planning import topology as slices
from tpuinfer.sharding import moves
from tpuinfer.sharding.layout import Layout, resolve
from tpuinfer.sharding.mesh import abstract_mesh
from tpuinfer.sharding.moves import Moved
from tpuinfer.sharding.report import Placement
from tpuinfer.sharding.report import table as columns
from tpuinfer.sharding.rules import ShardingRules, as_names

Rules = str | Path | ShardingRules

_NONE = "-"

_ANY_MEMORY = 2**35
"""Bytes of a device that nobody has named, where slots are auto."""


@dataclass(frozen=True)
class Report(Sequence[Placement]):
    """Rows, one for all arrays that differ in their layer alone; a notebook shows them as a table.

    Attributes:
      plan: what they are of.
    """

    plan: Plan
    rows: tuple[Placement, ...] = field(repr=False)

    @overload
    def __getitem__(self, at: int) -> Placement: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Placement]: ...
    def __getitem__(self, at: int | slice) -> Placement | Sequence[Placement]:
        return self.rows[at]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        header, *rows = columns(self.rows)
        notes = [travel.rules_in_words(self.plan.layout.rules)]
        if self.plan.layout.prefill is not self.plan.layout:
            notes.append(travel.resharding_in_words(travel.resharding(self.plan)))
        return Table(header, rows, notes=[note for note in notes if note])


def report(
    model: str,
    mesh: str = "1",
    rules: Rules = DEFAULT_RULES,
    topology: str | None = None,
    slots: str = "8",
) -> Report:
    """Where every weight and ring lies, its bytes on a device, and the decision behind it.

    Raises:
      ConfigError, MeshError: what cannot be.
    """
    plan = _plan(model, mesh, rules, topology, slots)
    return Report(plan, tuple(plan.placements()))


def explain(
    param: str,
    model: str,
    mesh: str = "1",
    rules: Rules = DEFAULT_RULES,
    topology: str | None = None,
    slots: str = "8",
) -> Table:
    """Which rule places an array, dimension by dimension, and why it is not cut otherwise.

    Args:
      param: its name, or a part of it that no other has: "layers.0.mlp.up_proj.weight", "up_proj".

    Raises:
      ConfigError: no such array, or several; names the nearest.
    """
    plan = _plan(model, mesh, rules, topology, slots)
    row = _find(plan.placements(), param)
    table = plan.layout.kept.rules
    rows = []
    for size, axis in zip(row.shape, row.axes, strict=True):
        if axis is None:
            rows.append((str(size), _NONE, _NONE, _NONE, "bears no logical axis: never cut"))
            continue
        decided = plan.layout.kept.decisions[axis]
        wanted, found = table.places(axis), as_names(decided.mesh_axis)
        rows.append((str(size), axis, _said(wanted), _said(found), decided.why))
    notes = [f"{row.name}: {row.spec}, {row.bytes_per_device / 1e6:.2f} MB a device"]
    return Table(
        ("size", "axis", "the rule", "lies on", "why"), rows, notes=(*notes, *_otherwise(plan, row))
    )


def diff(
    one: Rules,
    other: Rules,
    model: str,
    mesh: str = "1",
    topology: str | None = None,
    slots: str = "8",
) -> Table:
    """What lies elsewhere, or is used elsewhere, under another table, and what a device then holds.

    "MB sent" is what the device that is sent most gets, were the weights moved from one to the
    other. Columns are called as the tables are; "first" and "second" where both have one name.

    Raises:
      ConfigError, MeshError: what cannot be, under either.
    """
    plans = [_plan(model, mesh, rules, topology, slots) for rules in (one, other)]
    sent = {row.name: row.bytes for row in _moved(*plans)}
    rows, sums = [], [0, 0]
    for pair in _pairs(*(plan.placements() for plan in plans)):
        sizes = [0 if row is None else row.bytes_per_device for row in pair]
        sums = [total + size for total, size in zip(sums, sizes, strict=True)]
        places = [
            _NONE if row is None else _place(plan.layout, row)
            for plan, row in zip(plans, pair, strict=True)
        ]
        if places[0] != places[1] or sizes[0] != sizes[1]:
            row = pair[0] or pair[1]
            assert row is not None, "one of a pair is there"
            moved = sent.get(row.name)
            megabytes = [_NONE if size is None else f"{size / 1e6:.2f}" for size in (*sizes, moved)]
            rows.append((row.name, str(row.count), *places, *megabytes))
    names = [next(iter(tables_of(rules))) for rules in (one, other)]
    if names[0] == names[1]:
        names = ["first", "second"]
    header = ("array", "count", *names, *(f"MB {name}" for name in names), "MB sent")
    total = f"all arrays: {sums[0] / 1e6:.2f} MB a device, then {sums[1] / 1e6:.2f}"
    return Table(header, rows, notes=(total if rows else f"nothing moves; {total}",))


def _moved(one: Plan, other: Plan) -> Sequence[Moved]:
    """Weights that lie elsewhere by another plan; nothing of those that are kept more often."""
    before, after = (travel.kept_arrays(plan) for plan in (one, other))
    alike = {name: array for name, array in before.items() if after[name].shape == array.shape}
    return moves.moves(one.layout, other.layout, alike)


def _plan(model: str, mesh: str, rules: Rules, topology: str | None, slots: str) -> Plan:
    cells = grid(model, [mesh], rules, [slots], topology)
    if len(cells) != 1:
        one = f"mesh {slices.written(cells[0].mesh)}, topology {cells[0].topology}"
        raise ConfigError(
            f"mesh is {mesh!r} and topology {topology!r}: that is {len(cells)} cells, here goes "
            f"one mesh and one slice; nearest: {one}"
        )
    cell = cells[0]
    if cell.topology is not None:
        return question.lay_out(described.asked(cell))
    _, config = question.find_model(model)
    return plan_to_fit(
        config,
        mesh=abstract_mesh(cell.mesh),
        engine=cell.engine,
        rules=cell.table,
        dtype=cell.dtype,
        usable=_ANY_MEMORY,
    )


def _find(rows: Sequence[Placement], param: str) -> Placement:
    alike = re.sub(r"\blayers\.\d+\b", "layers.*", param)
    found = [row for row in rows if row.name == alike] or [row for row in rows if alike in row.name]
    names = list(dict.fromkeys(row.name for row in found))
    if len(names) != 1:
        known = names or [row.name for row in rows]
        raise ConfigError(
            f"param is {param!r}: {len(names) or 'no'} arrays are called so; nearest: "
            f"{difflib.get_close_matches(alike, known, n=1, cutoff=0.0)[0]}"
        )
    return found[0]


def _otherwise(plan: Plan, row: Placement) -> Iterator[str]:
    """For each mesh axis that does not cut the array: why not, or what would."""
    layout, mesh = plan.layout.kept, plan.layout.mesh
    used = {
        name
        for axis in row.axes
        if axis is not None
        for name in as_names(layout.decisions[axis].mesh_axis)
    }
    for name, size in mesh.shape.items():
        if size == 1 or name in used:
            continue
        yield f"{name}={size} does not cut it: {size} devices hold the same"
        for axis in dict.fromkeys(axis for axis in row.axes if axis not in (None, "head_dim")):
            assert axis is not None
            yield f"  {axis} -> {name}: {_tried(plan, axis, name)}"


def _tried(plan: Plan, axis: str, name: str) -> str:
    """What would become of an axis on one mesh axis more."""
    rules = plan.layout.kept.rules
    places = (*rules.places(axis), name)
    try:
        table = dataclasses.replace(rules, axes={**rules.axes, axis: places}, prefill=None)
        sizes = registry.axis_sizes(plan.published, plan.slots.slots)
        decided = resolve(table, plan.layout.mesh, sizes).decisions[axis]
    except MeshError as error:
        return f"refused: {error}"
    if name in as_names(decided.mesh_axis):
        return f"would cut it: {decided.why}"
    return f"would not: {decided.why}"


def _pairs(
    one: Sequence[Placement], other: Sequence[Placement]
) -> Iterator[tuple[Placement | None, Placement | None]]:
    """Rows of the same arrays; what one has not is None there."""
    first, second = ({(row.name, row.kept, row.axes): row for row in rows} for rows in (one, other))
    for key in dict.fromkeys([*first, *second]):
        yield first.get(key), second.get(key)


def _place(layout: Layout, row: Placement) -> str:
    """Where an array lies, and where it is used if that is elsewhere."""
    kept = row.spec
    used = {"decode": layout, "prefill": layout.prefill}
    words = {
        name: "(" + ", ".join(_said(one.axes_of(axis)) for axis in row.axes) + ")"
        for name, one in used.items()
    }
    if row.axes and "batch" in row.axes:
        return kept
    others = [f"{name} {text}" for name, text in words.items() if text != kept]
    return f"{kept}; used as {', '.join(others)}" if others else kept


def _said(names: Sequence[str]) -> str:
    return "+".join(names) or _NONE
