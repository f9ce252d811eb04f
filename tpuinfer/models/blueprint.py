"""The convention that makes a blueprint: ShapeDtypeStructs in nnx Params, bound to arrays later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from tpuinfer.sharding.rules import Layout

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Weight:
    """One parameter of a model: its shape and the logical axis of each dimension."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


def weight(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param[Any]:
    """Declare a parameter. Weights are abstract float32 until real arrays are bound."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)


def weights(model: nnx.Module) -> dict[str, Weight]:
    """Every parameter of a blueprint by dotted name, in a fixed order."""
    return {
        _name(path): Weight(param.get_value().shape, param.axes)
        for path, param in sorted(_flat(model).items(), key=lambda item: _name(item[0]))
    }


def abstract_params(
    model: nnx.Module, layout: Layout, dtype: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every parameter: what a checkpoint loads into."""
    return {
        name: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype), sharding=layout.sharding(w.axes))
        for name, w in weights(model).items()
    }


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
