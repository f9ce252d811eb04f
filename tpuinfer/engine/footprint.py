"""What takes the memory of a device: weights by group, rings by kind of layer, and scratch.

Reckoned from the plan, so no array is needed; what programs need beside those is known once they
are compiled.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from tpuinfer.cache.spec import RING_AXES, RingSpec
from tpuinfer.engine.encoder import EncoderPlan
from tpuinfer.engine.plan import Plan, abstract_device
from tpuinfer.programs.manifest import Entry
from tpuinfer.sharding import report
from tpuinfer.sharding.layout import Layout

_GROUPS = (
    ("norm", "norms"),
    ("embed", "embedding"),
    ("lm_head", "head"),
    ("router", "experts"),
    ("experts", "experts"),
    ("mlp", "mlp"),
    ("self_attn", "attention"),
)
"""What occurs in a parameter's name -> its group; the first that does decides."""

GROUPS = ("embedding", "attention", "mlp", "experts", "norms", "head", "other")


@dataclass(frozen=True)
class Share:
    """What one group of arrays takes on one device.

    Attributes:
      kind: what the arrays are.
      group: of weights one of `GROUPS`; of rings which layers have them, such as "global" or
        "window 512", behind the class of slots when there are several; of scratch the program that
        needs most.
      count: how many arrays, or layers with such rings.
      columns: of a ring, for each slot. slots: over all devices. None for what is no ring.
      bytes: on one device.
    """

    kind: Literal["weights", "rings", "state", "scratch"]
    group: str
    count: int
    bytes: int
    columns: int | None = None
    slots: int | None = None


def shares(plan: Plan | EncoderPlan, programs: Sequence[Entry] = ()) -> list[Share]:
    """What lies on one device, and what the most demanding program needs beside that.

    Args:
      programs: the compiled ones; without them there is no row for scratch.
    """
    rows = _weights(plan)
    if isinstance(plan, Plan):
        rows += _rings(plan)
        rows += _state(plan)
    if programs:
        needs = {entry.name: _beside(entry) for entry in programs}
        name = max(needs, key=needs.__getitem__)
        rows.append(Share("scratch", name, 1, needs[name]))
    return rows


def weight_bytes(plan: Plan) -> int:
    """All weights on one device."""
    return sum(share.bytes for share in _weights(plan))


def slot_bytes(plan: Plan) -> int:
    """Rings and state of all slots on one device."""
    return sum(share.bytes for share in (*_rings(plan), *_state(plan)))


def table(rows: Sequence[Share]) -> list[tuple[str, ...]]:
    """The rows as text, header first and the sum last."""
    lines = [("memory", "group", "count", "columns", "slots", "MB/device")]
    for row in rows:
        columns, slots = ("" if size is None else str(size) for size in (row.columns, row.slots))
        size = f"{row.bytes / 1e6:.2f}"
        lines.append((row.kind, row.group, str(row.count), columns, slots, size))
    total = sum(row.bytes for row in rows)
    return [*lines, ("total", "", "", "", "", f"{total / 1e6:.2f}")]


def render(rows: Sequence[Share]) -> str:
    """The table as aligned text."""
    return report.render(table(rows))


def group_of(name: str) -> str:
    """The group of a parameter, by its dotted name.

    >>> group_of("layers.3.self_attn.q_norm.weight"), group_of("layers.3.mlp.experts.up_proj.bias")
    ('norms', 'experts')
    """
    return next((group for part, group in _GROUPS if part in name), "other")


def _weights(plan: Plan | EncoderPlan) -> list[Share]:
    found: dict[str, Share] = {}
    for row in plan.placements():
        if row.axes == RING_AXES:
            continue
        group = group_of(row.name)
        seen = found.get(group, Share("weights", group, 0, 0))
        found[group] = dataclasses.replace(
            seen, count=seen.count + row.count, bytes=seen.bytes + row.bytes_per_device
        )
    return [found[group] for group in GROUPS if group in found]


def _rings(plan: Plan) -> list[Share]:
    """Rows of each class of slots, by what its layers look back at."""
    found: dict[tuple[int, str, int], Share] = {}
    several = len(plan.slots.counts) > 1
    for layer, classes in enumerate(plan.rings):
        window = plan.config.window(layer)
        sees = "global" if window is None else f"window {window}"
        for index, spec in enumerate(classes):
            group = f"{plan.slots.capacities[index]}: {sees}" if several else sees
            key = index, group, spec.length
            seen = found.get(
                key, Share("rings", group, 0, 0, columns=spec.length, slots=spec.slots)
            )
            size = seen.bytes + _ring_bytes(plan.layout, spec)
            found[key] = dataclasses.replace(seen, count=seen.count + 1, bytes=size)
    return [found[key] for key in sorted(found)]


def _ring_bytes(layout: Layout, spec: RingSpec) -> int:
    """Keys and values of one ring on one device."""
    return spec.bytes // math.prod(layout.shards(axis) for axis in RING_AXES)


def _state(plan: Plan) -> list[Share]:
    """The arrays of all slots, whole on every device: counts of tokens, tables, the small ones."""
    state, tables = abstract_device(plan)
    groups = {"of slots": state.small(), "counts": state.counts, "tables": tables}
    shares = []
    for group, tree in groups.items():
        arrays: list[Any] = jax.tree.leaves(tree)
        size = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
        shares.append(Share("state", group, len(arrays), size, slots=plan.slots.slots))
    return shares


def _beside(entry: Entry) -> int:
    """Bytes a program needs beside its arguments: scratch, and results that take no one's place."""
    return entry.temp_bytes + entry.output_bytes - entry.alias_bytes
