"""The one table between logical axes and mesh axes, and what it means for one model.

rules (data)                     sizes (of one model)         mesh
heads -> model, else replicate   heads 9, kv_heads 3     on   data=2, model=4
mlp   -> model, else replicate   mlp 1536
                                    |
                                    v
layout:  heads    (replicated)   "9 does not divide by model=4: replicated"
         kv_heads (replicated)   "3 does not divide by model=4: replicated"
         mlp      model          "1536 over model=4"
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tpuinfer.config import read_toml
from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import DATA, MODEL

Fallback = Literal["replicate", "error"]

LOGICAL_AXES = (
    "batch",
    "embed",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "vocab",
    "expert",
    "expert_mlp",
    "length",
)

_TOGETHER = (("heads", "kv_heads"),)
"""Axes that are cut alike or not at all: a query head must meet its KV head on one device."""

_ONLY_ON = (
    ("batch", DATA),
    ("embed", None),
    ("head_dim", None),
    ("expert", MODEL),
    ("expert_mlp", MODEL),
)
"""Axes that can lie on one mesh axis only. (Rows do not travel to experts of other data shards.)"""

_YIELDS_TO = {"expert_mlp": "expert"}
"""Two axes of the same weights: the first is left whole on a mesh axis that cuts the second."""


@dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axis (None = on every device), and what to do when it does not divide.

    Attributes:
      axes: one entry per logical axis; axes that are not named are replicated.
      fallback: "replicate" or "error" per logical axis, for sizes the mesh axis does not divide.
      reduce: "scatter" (reduce-scatter along embed, then all-gather) or "exact" (all-gather, then
        a sum in fixed order: equal bits across process layouts, more bytes).
    """

    axes: Mapping[str, str | None] = field(
        default_factory=lambda: {
            "batch": DATA,
            "heads": MODEL,
            "kv_heads": MODEL,
            "mlp": MODEL,
            "vocab": MODEL,
            "expert": MODEL,
            "expert_mlp": MODEL,
        }
    )
    fallback: Mapping[str, Fallback] = field(default_factory=lambda: {"batch": "error"})
    reduce: Literal["scatter", "exact"] = "scatter"

    def __post_init__(self) -> None:
        for name in (*self.axes, *self.fallback):
            if name not in LOGICAL_AXES:
                near = difflib.get_close_matches(name, LOGICAL_AXES, n=1, cutoff=0.0)[0]
                raise MeshError(f"rules name {name!r}, which is no logical axis; nearest: {near!r}")
        for name, mesh_axis in self.axes.items():
            if mesh_axis not in (None, DATA, MODEL):
                raise MeshError(
                    f"rules put {name!r} on {mesh_axis!r}; the mesh axes are {DATA} and {MODEL}"
                )
        for name, allowed in _ONLY_ON:
            if self.axes.get(name) not in (None, allowed):
                raise MeshError(
                    f"rules put {name!r} on {self.axes[name]!r}; it can lie on "
                    f"{allowed or 'no axis'} only"
                )
        for group in _TOGETHER:
            places = {name: self.axes[name] for name in group if self.axes.get(name) is not None}
            if len(set(places.values())) > 1:
                said = " and ".join(f"{name!r} on {axis!r}" for name, axis in places.items())
                raise MeshError(f"rules put {said}; they can lie on the same axis only")
        for name, what in self.fallback.items():
            if what not in ("replicate", "error"):
                raise MeshError(f"fallback of {name!r} is {what!r}: replicate or error")
        if self.reduce not in ("scatter", "exact"):
            raise MeshError(f"reduce is {self.reduce!r}: scatter or exact")


def load_rules(path: str | Path) -> ShardingRules:
    """Rules from TOML: tables [axes] and [fallback], and a key `reduce`; absent ones keep defaults.

    An empty string replicates an axis: `heads = ""`.

    Raises:
      MeshError: an unknown table, axis or value. ConfigError: the file cannot be read.
    """
    data = read_toml(path)
    if unknown := sorted(set(data) - {"axes", "fallback", "reduce"}):
        raise MeshError(f"{path}: {unknown[0]!r} is not known; write [axes], [fallback], reduce")
    default = ShardingRules()
    for table in ("axes", "fallback"):
        if not isinstance(data.get(table, {}), dict):
            raise MeshError(f"{path}: {table} is {data[table]!r}: write a table, [{table}]")
    axes = {name: None if axis == "" else axis for name, axis in data.get("axes", {}).items()}
    return ShardingRules(
        axes={**default.axes, **axes},
        fallback={**default.fallback, **data.get("fallback", {})},
        reduce=data.get("reduce", default.reduce),
    )


@dataclass(frozen=True)
class Decision:
    """Where one logical axis lies: `mesh_axis` (None = on every device) and why."""

    mesh_axis: str | None
    shards: int
    why: str


@dataclass(frozen=True)
class Layout:
    """The rules resolved for one model on one mesh: specs for anything named in logical axes."""

    mesh: Mesh | AbstractMesh
    rules: ShardingRules
    decisions: Mapping[str, Decision]

    def mesh_axis(self, axis: str) -> str | None:
        return self.decisions[axis].mesh_axis

    def shards(self, axis: str) -> int:
        """Into how many pieces a logical axis is cut (1 = replicated)."""
        return self.decisions[axis].shards

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions bear these logical axes.

        Raises:
          MeshError: two of its dimensions would lie on the same mesh axis.
        """
        placed = [None if axis is None else self.mesh_axis(axis) for axis in axes]
        used = [mesh_axis for mesh_axis in placed if mesh_axis is not None]
        if len(used) != len(set(used)):
            raise MeshError(
                f"an array with axes {axes} would lie twice on mesh axis "
                f"{max(used, key=used.count)!r}: put one of its axes elsewhere"
            )
        return PartitionSpec(*placed)

    def sharding(self, axes: tuple[str | None, ...] = ()) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Pin an activation to its place inside a program."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))


def resolve(rules: ShardingRules, mesh: Mesh | AbstractMesh, sizes: Mapping[str, int]) -> Layout:
    """Decide for each logical axis of a model where it lies on this mesh.

    Args:
      sizes: size of each logical axis that may be cut (batch is the number of slots).

    Raises:
      MeshError: an axis does not divide and its fallback is "error"; names the nearest that does.
    """
    decisions: dict[str, Decision] = {}
    for axis in LOGICAL_AXES:
        other = _YIELDS_TO.get(axis)
        cut = decisions[other].mesh_axis if other else None
        if cut and cut == rules.axes.get(axis):
            decisions[axis] = Decision(None, 1, f"whole: {cut} cuts {other}")
        else:
            decisions[axis] = _decide(axis, rules, mesh, sizes.get(axis))
    for group in _TOGETHER:
        alone = [axis for axis in group if decisions[axis].shards == 1]
        for axis in group:
            if alone and decisions[axis].shards > 1:
                why = f"{sizes[axis]} would divide, but {alone[0]} is replicated: kept together"
                decisions[axis] = Decision(None, 1, why)
    return Layout(mesh, rules, decisions)


def _decide(
    axis: str, rules: ShardingRules, mesh: Mesh | AbstractMesh, size: int | None
) -> Decision:
    mesh_axis = rules.axes.get(axis)
    if mesh_axis is None:
        return Decision(None, 1, "replicated by the rules")
    shards = mesh.shape[mesh_axis]
    if shards == 1:
        return Decision(None, 1, f"{mesh_axis}=1")
    if size is None:
        return Decision(None, 1, "not an axis of this model")
    if size % shards == 0:
        return Decision(mesh_axis, shards, f"{size} over {mesh_axis}={shards}")
    if rules.fallback.get(axis, "replicate") == "replicate":
        return Decision(None, 1, f"{size} does not divide by {mesh_axis}={shards}: replicated")
    what = "slots" if axis == "batch" else axis
    near = max(shards, round(size / shards) * shards)
    raise MeshError(
        f"{what} is {size}, which {mesh_axis}={shards} does not divide; nearest that works: "
        f"{what} {near}, or {mesh_axis}={math.gcd(size, shards)}"
    )
