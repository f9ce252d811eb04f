"""The one table between logical axes and mesh axes; `sharding.layout` resolves it for a model.

    logical axis      what has it                                    may lie on
    batch             rows of a call, slots of rings                 any
    residual          activations between blocks, along embed        what batch does not use
    embed             weights, along embed                           what the other axis leaves
    expert_embed      the same of experts
    heads, kv_heads   queries, and keys and values                   the same, see below
    length            columns of rings                               what batch and kv_heads leave
    mlp, vocab        MLPs; the embedding and the head
    expert            experts by number
    expert_mlp        each of them within                            what expert does not cut

A logical axis lies on a mesh axis, on several (it is cut over their product), or on none, and is
then whole on every device. Heads lie where their KV heads do; where rings are cut along their
length, heads may lie on those mesh axes too.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import DATA, MESH_AXES, MODEL, axes_in_words

Fallback = Literal["replicate", "error", "repeat"]
Place = str | Sequence[str] | None

LOGICAL_AXES = (
    "batch",
    "residual",
    "embed",
    "expert_embed",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "vocab",
    "expert",
    "expert_mlp",
    "length",
)

GATHERABLE = ("embed", "expert_embed", "mlp", "vocab", "expert", "expert_mlp")
"""Axes of weights alone, which can be gathered before they are used."""

PINNED = ("batch", "heads", "kv_heads", "length")
"""Axes of rings, and of what meets them: prefill and decode share the rings."""

_ARRAYS = (
    ("weights of attention", "heads", "embed"),
    ("weights of attention", "kv_heads", "embed"),
    ("weights of an MLP", "mlp", "embed"),
    ("the embedding and the head", "vocab", "embed"),
    ("weights of experts", "expert", "expert_embed"),
    ("weights of experts", "expert_mlp", "expert_embed"),
    ("rings", "batch", "kv_heads"),
    ("rings", "batch", "length"),
    ("rings", "kv_heads", "length"),
    ("queries", "batch", "heads"),
    ("activations", "batch", "residual"),
    ("logits", "batch", "vocab"),
)
"""Which arrays have two logical axes: a mesh axis can cut one of them only."""


@dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axes, and what to do when they do not divide.

    Attributes:
      axes: a mesh axis, several in a tuple (the first is major), or None = on every device. Axes
        that are not named are replicated.
      fallback: "replicate" or "error" per logical axis, for sizes that the mesh does not divide; of
        kv_heads also "repeat": each KV head is kept several times, so that they fill the axis (and
        where query heads do not divide either, they are replicated).
      reduce: "scatter" (reduce-scatter along embed, then all-gather) or "exact" (all-gather, then
        a sum in fixed order: equal bits across process layouts, more bytes).
      gather: weights' axes that are cut where weights are kept, and gathered, layer by layer, where
        they are used.
      prefill: another table for the programs that prefill; None = the same. Weights and rings lie
        as this table says, so it may not move the axes of rings; weights that it wants elsewhere
        travel in each call.
    """

    axes: Mapping[str, Place] = field(
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
    fallback: Mapping[str, Fallback] = field(
        default_factory=lambda: {"batch": "error", "kv_heads": "repeat"}
    )
    reduce: Literal["scatter", "exact"] = "scatter"
    gather: Sequence[str] = ()
    prefill: "ShardingRules | None" = None

    def __post_init__(self) -> None:
        if isinstance(self.gather, str):
            raise MeshError(f"gather is {self.gather!r}: write a list of axes")
        if not isinstance(self.prefill, ShardingRules | None):
            raise MeshError(f"prefill is {self.prefill!r}: give a ShardingRules")
        for name in (*self.axes, *self.fallback, *self.gather):
            if name not in LOGICAL_AXES:
                near = _nearest(name, LOGICAL_AXES)
                raise MeshError(f"rules name {name!r}, which is no logical axis; nearest: {near!r}")
        places = {name: _tidy(name, place) for name, place in self.axes.items()}
        object.__setattr__(self, "axes", places)
        object.__setattr__(self, "gather", tuple(self.gather))
        if self.axes.get("head_dim") is not None:
            raise MeshError(
                f"rules put 'head_dim' on {self.axes['head_dim']!r}; it can lie on no axis only; "
                "nearest: heads"
            )
        self._check_arrays()
        self._check_heads()
        self._check_choices()
        if self.prefill is not None:
            self._check_prefill(self.prefill)

    def places(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that a logical axis is to lie on; none = on every device."""
        return as_names(self.axes.get(axis))

    def data_shards(self, mesh: Mapping[str, int]) -> int:
        """Into how many parts rows are cut on a mesh of these sizes."""
        return math.prod(mesh.get(name, 1) for name in self.places("batch"))

    def _check_arrays(self) -> None:
        for what, one, other in _ARRAYS:
            for mesh_axis in self.places(one):
                if mesh_axis in self.places(other):
                    free = [name for name in MESH_AXES if name not in self._beside(other)]
                    near = f"{other} on {free[0]!r}" if free else f"{other} on no axis"
                    raise MeshError(
                        f"rules put {one!r} and {other!r} on {mesh_axis!r}, and {what} have both: "
                        f"a mesh axis cuts an array once; nearest: {near}"
                    )

    def _beside(self, axis: str) -> set[str]:
        """Mesh axes that lie with this axis in some array."""
        pairs = [{one, other} for _, one, other in _ARRAYS if axis in (one, other)]
        return {name for pair in pairs for one in pair - {axis} for name in self.places(one)}

    def _check_heads(self) -> None:
        heads, kv_heads, length = map(self.places, ("heads", "kv_heads", "length"))
        if heads in (kv_heads, (*kv_heads, *length)) or not heads or not (kv_heads or length):
            return
        near = (*kv_heads, *length) if length else kv_heads
        raise MeshError(
            f"rules put 'heads' on {said(heads)} and 'kv_heads' on {said(kv_heads)}"
            f"{f' and length on {said(length)}' if length else ''}; heads can lie where their KV "
            f"heads do, followed by what cuts the length of rings; nearest: heads on {said(near)}"
        )

    def _check_choices(self) -> None:
        for name, what in self.fallback.items():
            able = ("replicate", "error", *(("repeat",) if name == "kv_heads" else ()))
            if what not in able:
                raise MeshError(f"fallback of {name!r} is {what!r}: {' or '.join(able)}")
        for name in self.gather:
            if name not in GATHERABLE:
                raise MeshError(
                    f"gather names {name!r}; axes of weights alone can be gathered: "
                    f"{', '.join(GATHERABLE)}; nearest: {_nearest(name, GATHERABLE)!r}"
                )
        if self.places("expert_embed") and "expert_embed" not in self.gather:
            where = said(self.places("expert_embed"))
            raise MeshError(
                f"rules put 'expert_embed' on {where} and do not gather it: experts' weights can "
                "be cut along embed only where they lie; nearest: gather = ['expert_embed']"
            )
        if self.reduce not in ("scatter", "exact"):
            raise MeshError(f"reduce is {self.reduce!r}: scatter or exact")

    def _check_prefill(self, prefill: "ShardingRules") -> None:
        if prefill.prefill is not None:
            raise MeshError("rules for prefill have rules for prefill of their own: leave them out")
        for axis in PINNED:
            if prefill.places(axis) != self.places(axis):
                raise MeshError(
                    f"rules put {axis!r} on {said(prefill.places(axis))} for prefill and on "
                    f"{said(self.places(axis))} for decode, which share the rings; nearest: "
                    f"{axis} on {said(self.places(axis))}"
                )
            fallback, wanted = (rules.fallback.get(axis, "replicate") for rules in (prefill, self))
            if fallback != wanted:
                raise MeshError(
                    f"fallback of {axis!r} is {fallback!r} for prefill and {wanted!r} for decode, "
                    f"which share the rings; nearest: {wanted!r}"
                )


def as_names(place: Place) -> tuple[str, ...]:
    """A place as the mesh axes it is made of.

    >>> as_names(None), as_names("model"), as_names(("data", "model"))
    ((), ('model',), ('data', 'model'))
    """
    if place is None:
        return ()
    return (place,) if isinstance(place, str) else tuple(place)


def as_place(names: Iterable[str]) -> str | tuple[str, ...] | None:
    """Mesh axes as PartitionSpec and collectives take them: none, one, or several."""
    names = tuple(names)
    return None if not names else names[0] if len(names) == 1 else names


def said(names: Sequence[str]) -> str:
    """Mesh axes in an error message."""
    return repr(as_place(names)) if names else "no axis"


def _tidy(name: str, place: Place) -> str | tuple[str, ...] | None:
    """A place with its names checked.

    Raises:
      MeshError: one of them is no mesh axis, or stands there twice.
    """
    if not isinstance(place, str | list | tuple | None):
        raise MeshError(f"rules put {name!r} on {place!r}: write a mesh axis or a list of them")
    names = as_names(place)
    for one in names:
        if one not in MESH_AXES:
            near = _nearest(str(one), MESH_AXES)
            raise MeshError(
                f"rules put {name!r} on {one!r}; the mesh axes are {axes_in_words()}; "
                f"nearest: {near!r}"
            )
        if names.count(one) > 1:
            raise MeshError(
                f"rules put {name!r} on {one!r} twice; nearest: {said(tuple(dict.fromkeys(names)))}"
            )
    return as_place(names)


def _nearest(name: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
