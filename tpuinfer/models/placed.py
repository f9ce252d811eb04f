"""A map of rows by a weight, wherever both lie.

    in          [B, T, in]        rows on the data shards, or where they come together
    weight      [out, in]         as the rules cut it
    local map   [B, T, out]       a partial sum, where `in` is cut
    sum         [B, T, out / n]   a reduce-scatter along out, so that every row is treated alike
    home        [B, T, out]       all-gather; or all-to-all, where rows had come together

Rows come together where a mesh axis cuts both them and the weight: the weight stays, being larger.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.models.blueprint import Axes, specs
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.mesh import platform_of
from tpuinfer.sharding.reduce import divides, neighbours, reduce_model, scatter
from tpuinfer.sharding.rules import as_names, as_place

Names = tuple[str, ...]


def apply(
    local: Callable[[jax.Array, Any], jax.Array],
    x: jax.Array,
    value: Any,
    axes: Axes,
    contracted: int,
    layout: Layout,
    into: Axes,
) -> jax.Array:
    """`local(x, value)`, x [lead..., in...] -> [lead..., made...], placed as `into` says.

    Args:
      value: a weight [made..., in...], or a QArray. axes: of the weight.
      contracted: how many of its last dimensions are.
      into: logical axes of the result.
    """
    ins = tuple(map(layout.axes_of, axes[-contracted:]))
    outs = tuple(map(layout.axes_of, axes[:-contracted]))
    meets = Meeting(layout, _all(ins), _all(outs), into)
    lead = x.ndim - contracted
    if layout.stored(axes) != layout.spec(axes):
        x, value = brought(x, value, axes, layout)
    if not meets.summed and not meets.home:
        if meets.together:
            x = _put(x, meets.spec(lead, *ins), layout)
        return layout.constrain(local(x, value), into)

    def columns(x: jax.Array, value: Any) -> jax.Array:
        partial = local(x, value)
        return partial.reshape(*partial.shape[:lead], -1)

    where = (meets.spec(lead, *ins), specs(value, axes, layout))
    made = value.shape[: len(outs)]
    flat = total(columns, (x, value), where, meets, (*x.shape[:lead], math.prod(made)))
    return layout.constrain(flat.reshape(*x.shape[:lead], *made), into)


@dataclass(frozen=True)
class Meeting:
    """Where rows and a weight meet, and where the result goes.

    Attributes:
      summed: mesh axes that cut what is contracted: over these devices results are summed.
      made: mesh axes that cut what is made, all dimensions taken as one.
      into: logical axes of the result.
    """

    layout: Layout
    summed: Names
    made: Names
    into: Axes

    @property
    def rows(self) -> Names:
        """Mesh axes that cut rows meanwhile."""
        taken = {*self.summed, *self.made}
        return tuple(name for name in self.layout.axes_of("batch") if name not in taken)

    @property
    def together(self) -> bool:
        """Whether rows of several data shards come together."""
        return self.rows != self.layout.axes_of("batch")

    @property
    def goal(self) -> Names:
        """Mesh axes that cut the rows of the result."""
        return as_names(self.layout.spec(self.into)[0])

    @property
    def home(self) -> Names:
        """Mesh axes over which rows that came together go home again."""
        return tuple(name for name in self.goal if name not in self.rows)

    @property
    def moved(self) -> Names:
        """Mesh axes that cut what is made, and are to cut rows instead."""
        return tuple(name for name in self.made if name in self.home)

    @property
    def kept(self) -> Names:
        """Mesh axes over which the sum may stay cut."""
        residual = self.layout.axes_of("residual")
        stays = self.into[-1] == "residual" and {*residual} <= {*self.summed}
        return residual if stays and not self.moved else ()

    @property
    def in_order(self) -> bool:
        """Whether rows that came together are neighbours, and what is moved is made last."""
        stays = tuple(name for name in self.made if name not in self.moved)
        return self.goal == (*self.rows, *self.home) and self.made == (*stays, *self.moved)

    def spec(self, lead: int, *inner: Names, rows: Names | None = None) -> PartitionSpec:
        """Of an array [lead..., inner...], of whose `lead` dimensions the first is of rows."""
        first = as_place(self.rows if rows is None else rows)
        return PartitionSpec(first, *[None] * (lead - 1), *map(as_place, inner))


def total(
    local: Callable[..., jax.Array],
    given: Any,
    where: Any,
    meets: Meeting,
    shape: tuple[int, ...],
) -> jax.Array:
    """`local(*given)` on each device, summed over `meets.summed`, with its rows at home.

    What is not in order is left where it was made, for the compiler to move.

    Args:
      local: gives [lead..., columns], a partial sum. where: PartitionSpecs of `given`.
      shape: of the result, over all devices.

    Returns:
      [lead..., columns], cut along columns as what is made is cut, or as the residual is.
    """
    layout, lead = meets.layout, len(shape) - 1
    devices = math.prod(layout.mesh.shape[name] for name in (*meets.made, *meets.summed))
    even = divides(shape[-1], devices, platform_of(layout.mesh))
    in_pieces = layout.rules.reduce == "scatter" and even and bool(meets.summed)
    kept = meets.kept if in_pieces else ()
    near = neighbours(layout.mesh, meets.summed)
    home = meets.home if meets.in_order else ()
    stays = tuple(name for name in meets.made if name not in home)

    def run(*given: Any) -> jax.Array:
        partial = local(*given)
        if in_pieces and (home or kept):
            return _sum_in_pieces(partial, meets, home, kept, near)
        if meets.summed:
            axis = as_place(meets.summed)
            partial = reduce_model(partial, axis, layout.rules.reduce, near)
        return _split_rows(partial, meets, home) if home else partial

    result: jax.Array = jax.shard_map(
        run,
        mesh=layout.mesh,
        in_specs=where,
        out_specs=meets.spec(lead, (*stays, *kept), rows=(*meets.rows, *home)),
        check_vma=False,
    )(*given)
    return result


def whole_input(x: jax.Array, layout: Layout) -> jax.Array:
    """Activations [..., D] as the maps of a block take them: brought there once for all of them.

    What is between blocks may be cut along embed.
    """
    if not layout.axes_of("residual") and not layout.axes_of("embed"):
        return x
    lead = ("batch", *[None] * (x.ndim - 2))
    # Pinned on both sides of the way, or the compiler moves it before it is rounded.
    x = layout.constrain(x, (*lead, "residual"))
    return layout.constrain(x, (*lead, "embed"))


def _sum_in_pieces(
    partial: jax.Array, meets: Meeting, home: Names, kept: Names, near: int
) -> jax.Array:
    """The sum of [rows, ..., columns], each piece of which goes where it is to be.

    2 x 2 devices (data, model), rows that came together over data, summed over both, 8 columns:

        reduce-scatter    rows 0-3, columns 0-1     (order: model, then data)
        all-to-all        rows 0-1, columns 0-3     over data
        all-gather        rows 0-1, columns 0-7     over model
    """
    ends = tuple(name for name in home if name in meets.summed)
    rest = tuple(name for name in meets.summed if name not in (*ends, *kept))
    x = _apart(scatter(partial, as_place((*kept, *rest, *ends)), near), meets, home)
    for name in reversed(ends):
        x = _to_rows(x, name, home.index(name), x.ndim - 1)
    x = _moved_to_rows(x, meets, home)
    if rest:
        x = jax.lax.all_gather(x, rest, axis=x.ndim - 1, tiled=True)
    return _joined(x, len(home))


def _split_rows(x: jax.Array, meets: Meeting, home: Names) -> jax.Array:
    """Its own rows for each device, where all have the sum of all."""
    x = _apart(x, meets, home)
    for name in home:
        if name not in meets.moved:
            x = jax.lax.dynamic_index_in_dim(x, jax.lax.axis_index(name), home.index(name))
    return _joined(_moved_to_rows(x, meets, home), len(home))


def _moved_to_rows(x: jax.Array, meets: Meeting, home: Names) -> jax.Array:
    """What mesh axes made apart comes together, the first of them major, and rows part."""
    for name in reversed(meets.moved):
        x = _to_rows(x, name, home.index(name), x.ndim - 2)
    return x


def _apart(x: jax.Array, meets: Meeting, home: Names) -> jax.Array:
    """[rows, ..., columns] -> [a dimension for each of `home`, own rows, ..., 1, columns]."""
    sizes = [meets.layout.mesh.shape[name] for name in home]
    own = x.shape[0] // math.prod(sizes)
    return x.reshape(*sizes, own, *x.shape[1:-1], 1, x.shape[-1])


def _to_rows(x: jax.Array, name: str, rows: int, columns: int) -> jax.Array:
    return jax.lax.all_to_all(x, name, split_axis=rows, concat_axis=columns, tiled=True)


def _joined(x: jax.Array, ahead: int) -> jax.Array:
    """`_apart` undone: its first dimensions are of one by now."""
    return x.reshape(*x.shape[ahead:-2], -1)


def brought(x: jax.Array, value: Any, axes: Axes, layout: Layout) -> tuple[jax.Array, Any]:
    """A weight where it is used, brought there once `x` is known.

    The barrier keeps the compiler from bringing weights of many layers ahead, which would then all
    lie there at once.
    """
    x, value = jax.lax.optimization_barrier((x, value))
    where = specs(value, axes, layout)
    return x, jax.tree.map(lambda part, spec: _put(part, spec, layout), value, where)


def _all(places: tuple[Names, ...]) -> Names:
    return tuple(name for names in places for name in names)


def _put(x: jax.Array, spec: PartitionSpec, layout: Layout) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))
