"""Parameters out of thin air, for a model whose speed is asked for and whose words are not."""

import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tpuinfer.checkpoint import repeat
from tpuinfer.quant.qarray import FP8_MAX, QArray


def random_params(
    abstract: Mapping[str, Any],
    seed: int,
    repeats: Mapping[str, int] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Parameters made where they will lie: each device makes its own part, the host none.

    Matrices are uniform, small enough that no activation overflows (their variance is one over the
    elements in a row, which are at least the inputs); vectors, the norms, are 1.

    Args:
      abstract: shape, dtype and sharding by dotted name (`models.blueprint.abstract_params`).
      seed: the same seed gives the same values on every mesh.
      repeats: how often each head is kept of those whose heads are repeated, by name.
    """
    key = jax.random.key(seed)
    made = {}
    for index, (name, one) in enumerate(sorted(abstract.items())):
        own = jax.random.fold_in(key, index)
        if name in repeats:
            made[name] = repeat.repeat(_made(repeat.published(one, repeats[name]), own), one)
        else:
            made[name] = _made(one, own)
    return made


def _made(one: Any, key: jax.Array) -> Any:
    """A parameter; of a QArray the codes are uniform, and the scales bring them into range."""
    if not isinstance(one, QArray):
        return _maker(one.shape, one.dtype, one.sharding)(key)
    limit = math.sqrt(3 / math.prod(one.values.shape[1:]))
    top = {"int4": 8, "fp8": FP8_MAX}.get(one.kind, 127)

    def make(key: jax.Array) -> QArray:
        least, most = (0, 256) if one.is_packed else (-int(top) + 1, int(top))
        codes = jax.random.randint(key, one.values.shape, least, most, jnp.int32)
        scale = jnp.full(one.scale.shape, limit / top, jnp.float32)
        zero = None if one.zero is None else jnp.zeros_like(scale)
        return QArray(codes.astype(one.values.dtype), scale, zero, one.kind, one.grouped)

    return jax.jit(make, out_shardings=jax.tree.map(lambda part: part.sharding, one))(key)


@functools.lru_cache(maxsize=64)
def _maker(
    shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> Callable[[jax.Array], jax.Array]:
    """A program from a key to an array; parameters of one shape and place share it."""

    def make(key: jax.Array) -> jax.Array:
        if len(shape) == 1:
            return jnp.ones(shape, dtype)
        limit = math.sqrt(3 / math.prod(shape[1:]))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return jax.jit(make, out_shardings=sharding)
