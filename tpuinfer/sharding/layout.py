"""The rules resolved for one model on one mesh: where each logical axis lies, and why.

rules (data)                     sizes (of one model)         mesh
heads -> model, else replicate   heads 9, kv_heads 3     on   data=2, model=4
mlp   -> model, else replicate   mlp 1536
                                    |
                                    v
layout:  heads    (replicated)   "9 does not divide by model=4: replicated"
         kv_heads (replicated)   "3 does not divide by model=4: replicated"
         mlp      model          "1536 over model=4"
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tpuinfer.errors import MeshError
from tpuinfer.sharding.rules import LOGICAL_AXES, ShardingRules, as_names, as_place

Axes = tuple[str | None, ...]
MeshAxis = str | tuple[str, ...] | None
AnyMesh = Mesh | AbstractMesh

_YIELDS_TO = {"expert_mlp": "expert"}
"""Two axes of the same weights: the first is left whole on a mesh axis that cuts the second."""


@dataclass(frozen=True)
class Decision:
    """Where one logical axis lies, and why.

    Attributes:
      mesh_axis: one mesh axis, or several; None = on every device.
      shards: into how many pieces they cut it.
      gathered: so lie weights; where they are used, the axis is whole.
    """

    mesh_axis: MeshAxis
    shards: int
    why: str
    gathered: bool = False


@dataclass(frozen=True)
class Layout:
    """Specs for anything named in logical axes.

    What is said of an axis (`mesh_axis`, `shards`, `spec`) holds where programs compute; weights
    are kept as `stored` says, which differs for axes that are gathered, and in prefill where that
    has rules of its own.

    Attributes:
      repeats: how often each KV head is kept.
      apart: the layout of prefill; None = this one.
      base: of a layout of prefill the one that weights are kept by.
    """

    mesh: AnyMesh
    rules: ShardingRules
    decisions: Mapping[str, Decision]
    repeats: int = 1
    apart: "Layout | None" = None
    base: "Layout | None" = None

    @property
    def prefill(self) -> "Layout":
        """The layout of programs that prefill."""
        return self if self.apart is None else self.apart

    @property
    def kept(self) -> "Layout":
        """The layout that weights are kept by."""
        return self if self.base is None else self.base

    def mesh_axis(self, axis: str) -> MeshAxis:
        """What a logical axis is cut over, as collectives and PartitionSpec take it."""
        found = self.decisions[axis]
        return None if found.gathered else found.mesh_axis

    def axes_of(self, axis: str | None) -> tuple[str, ...]:
        """The mesh axes that a logical axis is cut over."""
        return () if axis is None else as_names(self.mesh_axis(axis))

    def stored_axes_of(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that weights are cut over along a logical axis where they are kept."""
        return as_names(self.kept.decisions[axis].mesh_axis)

    def shards(self, axis: str) -> int:
        """Into how many pieces a logical axis is cut (1 = replicated)."""
        found = self.decisions[axis]
        return 1 if found.gathered else found.shards

    def stored_shards(self, axis: str) -> int:
        """Into how many pieces weights are cut along a logical axis where they are kept."""
        return self.kept.decisions[axis].shards

    def spec(self, axes: Axes) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions bear these logical axes.

        Rows are whole over a mesh axis that another dimension lies on.

        Raises:
          MeshError: two of its other dimensions would lie on the same mesh axis.
        """
        return _spec(axes, [self.axes_of(axis) for axis in axes])

    def stored(self, axes: Axes) -> PartitionSpec:
        """The PartitionSpec of a weight where it is kept."""
        return _spec(axes, [() if axis is None else self.stored_axes_of(axis) for axis in axes])

    def sharding(self, axes: Axes = ()) -> NamedSharding:
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Pin an activation to its place inside a program."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))


def _spec(axes: Axes, places: list[tuple[str, ...]]) -> PartitionSpec:
    used = [
        name for axis, place in zip(axes, places, strict=True) if axis != "batch" for name in place
    ]
    if len(used) != len(set(used)):
        raise MeshError(
            f"an array with axes {axes} would lie twice on mesh axis "
            f"{max(used, key=used.count)!r}: put one of its axes elsewhere"
        )
    free = [
        tuple(name for name in place if name not in used) if axis == "batch" else place
        for axis, place in zip(axes, places, strict=True)
    ]
    return PartitionSpec(*map(as_place, free))


def resolve(rules: ShardingRules, mesh: AnyMesh, sizes: Mapping[str, int]) -> Layout:
    """Decide for each logical axis of a model where it lies on this mesh.

    Args:
      sizes: size of each logical axis that may be cut (batch is the number of slots; 0 = whatever
        divides, as the length of rings is made to).

    Raises:
      MeshError: an axis does not divide and its fallback is "error"; names the nearest that does.
    """
    layout = _resolve(rules, mesh, sizes)
    if rules.prefill is None:
        return layout
    prefill = _resolve(rules.prefill, mesh, sizes)
    own = Layout(mesh, rules.prefill, prefill.decisions, prefill.repeats, base=layout)
    return Layout(mesh, rules, layout.decisions, layout.repeats, apart=own)


def _resolve(rules: ShardingRules, mesh: AnyMesh, sizes: Mapping[str, int]) -> Layout:
    decisions: dict[str, Decision] = {}
    for axis in LOGICAL_AXES:
        decisions[axis] = _Case(axis, rules, mesh, sizes, decisions).decide()
    repeats = 1
    if (cut := decisions["kv_heads"].shards) > 1:
        repeats = math.lcm(sizes["kv_heads"], cut) // sizes["kv_heads"]
    _keep_together(decisions, sizes)
    if decisions["kv_heads"].shards == 1:
        repeats = 1
    return Layout(mesh, rules, decisions, repeats)


def _keep_together(decisions: dict[str, Decision], sizes: Mapping[str, int]) -> None:
    """A query head must meet its KV head on one device, or each part of its ring."""
    heads, kv_heads, length = (
        as_names(decisions[axis].mesh_axis) for axis in ("heads", "kv_heads", "length")
    )
    if heads in (kv_heads, (*kv_heads, *length)):
        return
    for axis, alone in (("heads", "kv_heads"), ("kv_heads", "heads")):
        if decisions[axis].shards > 1:
            why = f"{sizes[axis]} would divide, but {alone} is replicated: kept together"
            decisions[axis] = Decision(None, 1, why)


@dataclass(frozen=True)
class _Case:
    """One axis that is to be decided.

    Attributes:
      decided: the axes before it.
    """

    axis: str
    rules: ShardingRules
    mesh: AnyMesh
    sizes: Mapping[str, int]
    decided: Mapping[str, Decision]

    def decide(self) -> Decision:
        wanted = self.rules.places(self.axis)
        if not wanted:
            return Decision(None, 1, "replicated by the rules")
        there = tuple(name for name in wanted if self.mesh.shape.get(name, 1) > 1)
        if not there:
            return Decision(None, 1, ", ".join(f"{name}=1" for name in wanted))
        if (other := _YIELDS_TO.get(self.axis)) is not None:
            taken = as_names(self.decided[other].mesh_axis)
            if cut := [name for name in there if name in taken]:
                there = tuple(name for name in there if name not in taken)
                if not there:
                    return Decision(None, 1, f"whole: {' and '.join(cut)} cuts {other}")
        size = self.sizes.get(self.axis)
        if size is None:
            return Decision(None, 1, "not an axis of this model")
        return self._cut(there, size)

    def _cut(self, names: tuple[str, ...], size: int) -> Decision:
        shards = math.prod(self.mesh.shape[name] for name in names)
        over = " x ".join(f"{name}={self.mesh.shape[name]}" for name in names)
        gathered = self.axis in self.rules.gather
        if size % shards == 0:
            what = str(size) if size else "columns" if self.axis == "length" else "rows"
            how = ", gathered where they are used" if gathered else ""
            return Decision(as_place(names), shards, f"{what} over {over}{how}", gathered)
        fallback = self.rules.fallback.get(self.axis, "replicate")
        if fallback == "error":
            self._refuse(names, size, shards)
        why = f"{size} does not divide by {over}: replicated"
        if fallback == "replicate":
            return Decision(None, 1, why)
        heads, filled = self.sizes["heads"], math.lcm(size, shards)
        if heads % filled or self.decided["heads"].shards % shards:
            return Decision(None, 1, why)
        why = f"{size}, each kept {filled // size} times: {filled} over {over}"
        return Decision(as_place(names), shards, why)

    def _refuse(self, names: tuple[str, ...], size: int, shards: int) -> None:
        what = "slots" if self.axis == "batch" else self.axis
        near = max(shards, round(size / shards) * shards)
        mesh_axis, one = names[-1], self.mesh.shape[names[-1]]
        over = " x ".join(f"{name}={self.mesh.shape[name]}" for name in names)
        rest = shards // one
        smaller = math.gcd(size // math.gcd(size, rest), one) if rest > 1 else math.gcd(size, one)
        raise MeshError(
            f"{what} is {size}, which {over} does not divide; nearest that works: "
            f"{what} {near}, or {mesh_axis}={smaller}"
        )
