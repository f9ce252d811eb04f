"""Parameters of which a device keeps each head several times: copies, made where they will lie.

stored   [2, ...]    head 0, head 1
kept     [4, ...]    head 0, head 0, head 1, head 1
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def published(want: Any, repeats: int) -> Any:
    """What is read for `want`: fewer heads in the first dimension, all of them on every device.

    Args:
      want: shape, dtype and sharding of a parameter, or a QArray of such, heads repeated.
    """

    def one(part: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        heads, *rest = part.shape
        assert heads % repeats == 0, f"{heads} heads, each kept {repeats} times"
        place = part.sharding
        assert isinstance(place, NamedSharding)
        spec = PartitionSpec(None, *place.spec[1:])
        where = NamedSharding(place.mesh, spec)
        return jax.ShapeDtypeStruct((heads // repeats, *rest), part.dtype, sharding=where)

    return jax.tree.map(one, want)


def repeat(value: Any, want: Any) -> Any:
    """A parameter with its heads repeated, as `want` says, from what `published` describes."""
    wanted, tree = jax.tree.flatten(want)
    parts = jax.tree.leaves(value)
    repeats = wanted[0].shape[0] // parts[0].shape[0]
    run = _program(repeats, tuple(one.sharding for one in wanted))
    return jax.tree.unflatten(tree, run(parts))


def once(params: Mapping[str, Any], repeats: Mapping[str, int]) -> dict[str, Any]:
    """Parameters with each head once again: the first of its copies."""
    fewer = {
        name: jax.tree.map(lambda part, n=n: part[::n], params[name]) for name, n in repeats.items()
    }
    return {**params, **fewer}


@functools.lru_cache(maxsize=64)
def _program(repeats: int, places: tuple[NamedSharding, ...]) -> Any:
    def one(part: jax.Array) -> jax.Array:
        heads, *rest = part.shape
        copies = jnp.broadcast_to(part[:, None], (heads, repeats, *rest))
        return copies.reshape(heads * repeats, *rest)

    def run(parts: Sequence[jax.Array]) -> list[jax.Array]:
        return [one(part) for part in parts]

    return jax.jit(run, out_shardings=list(places))
