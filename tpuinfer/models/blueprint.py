"""The convention that makes a blueprint: ShapeDtypeStructs in nnx Params, bound to arrays later."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from tpuinfer.platform import platform_settings
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, bits_of
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.mesh import platform_of

Axes = tuple[str | None, ...]

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Weight:
    """One parameter of a model: its shape and the logical axis of each dimension.

    Attributes:
      contracted: how many of its last dimensions a dot contracts; 0 = it is never quantised.
    """

    shape: tuple[int, ...]
    axes: Axes
    contracted: int = 0


def weight(shape: tuple[int, ...], axes: Axes, contracted: int = 0) -> nnx.Param[Any]:
    """Declare a parameter. Weights are abstract float32 until real arrays are bound.

    Args:
      contracted: as in `Weight`.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes, contracted=contracted)


def weights(model: nnx.Module) -> dict[str, Weight]:
    """Every parameter of a blueprint by dotted name, in a fixed order."""
    return dict(_weights(model))


@functools.lru_cache(maxsize=8)
def _weights(model: nnx.Module) -> Mapping[str, Weight]:
    return {
        _name(path): Weight(param.get_value().shape, param.axes, param.contracted)
        for path, param in sorted(_flat(model).items(), key=lambda item: _name(item[0]))
    }


def abstract_params(
    model: nnx.Module, layout: Layout, dtype: str, schemes: Mapping[str, Scheme] | None = None
) -> dict[str, Any]:
    """Shape, dtype and sharding of every parameter: what a checkpoint loads into.

    Args:
      schemes: of the parameters that are quantised, by name: they are QArrays of such shapes.
    """
    schemes = schemes or {}
    packed = platform_settings(platform_of(layout.mesh)).packs_int4

    def one(name: str, w: Weight) -> Any:
        if name in schemes:
            made = fit.abstract(schemes[name], w.shape, w.contracted, packed=packed)
            return placed(made, w.axes, layout)
        return placed(jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), w.axes, layout)

    return {name: one(name, w) for name, w in weights(model).items()}


def placed(value: Any, axes: Axes, layout: Layout) -> Any:
    """Abstract values with their shardings: a scale lies where the rows it belongs to lie."""

    def at(part: jax.ShapeDtypeStruct, own: Axes) -> jax.ShapeDtypeStruct:
        where = NamedSharding(layout.mesh, layout.stored(own))
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=where)

    return _part_by_part(value, axes, at)


def specs(value: Any, axes: Axes, layout: Layout) -> Any:
    """Where a parameter is used, as `jax.shard_map` asks: a PartitionSpec, or a QArray of them."""
    return _part_by_part(value, axes, lambda _, own: layout.spec(own))


def stored_specs(value: Any, axes: Axes, layout: Layout) -> Any:
    """As `specs`, where the parameter is kept."""
    return _part_by_part(value, axes, lambda _, own: layout.stored(own))


def pieces(value: Any, axes: Axes) -> list[tuple[tuple[int, ...], Axes, int]]:
    """(shape, axes, bits of an element) of each array that a parameter is kept in."""
    found: list[tuple[tuple[int, ...], Axes, int]] = []
    _part_by_part(
        value, axes, lambda part, own: found.append((part.shape, own, bits_of(part.dtype)))
    )
    return found


def _part_by_part(value: Any, axes: Axes, make: Callable[[Any, Axes], Any]) -> Any:
    """`make(array, its axes)` of an array, or of each part of a QArray.

    weight   [D, N, H]      embed, heads, head_dim
    values   [D, N, H]      embed, heads, head_dim      or, in groups,  [D, G, S]  embed, heads, -
    scale    [D]            embed                                       [D, G]     embed, heads
    """
    if not isinstance(value, QArray):
        return make(value, axes)
    outs = axes[: value.outs]
    scale = (*outs, axes[value.outs]) if value.grouped else outs
    return dataclasses.replace(
        value,
        values=make(value.values, (*scale, None) if value.grouped else axes),
        scale=make(value.scale, scale),
        zero=None if value.zero is None else make(value.zero, scale),
    )


def bind(model: M, params: Mapping[str, Any]) -> M:
    """The model with real values in place of shapes; the first line of a program.

    Args:
      params: one value per parameter, by dotted name.
    """
    graph, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    bound = [(path, param.replace(params[_name(path)])) for path, param in flat]
    return nnx.merge(graph, nnx.from_flat_state(bound))


def traced_once(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply(layer, *arrays)` as a sub-program that layers of equal structure share.

    Thirty unrolled layers are then traced and lowered once, which is most of the time it takes to
    start with a warm compilation cache; the compiler inlines the calls, so what runs is the same.
    """

    def run(graph: Any, state: Any, *arrays: Any) -> Any:
        return apply(nnx.merge(graph, state), *arrays)

    shared = jax.jit(run, static_argnums=0)

    def call(layer: nnx.Module, *arrays: Any) -> Any:
        graph, state = nnx.split(layer)
        return shared(graph, state, *arrays)

    return call


def _flat(model: nnx.Module) -> dict[tuple[Any, ...], Any]:
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)
