"""Parameters out of thin air, for a model whose speed is asked for and whose words are not."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def random_params(abstract: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> dict[str, jax.Array]:
    """Parameters made where they will lie: each device makes its own part, the host none.

    Matrices are uniform, small enough that no activation overflows (their variance is one over the
    elements in a row, which are at least the inputs); vectors, the norms, are 1.

    Args:
      abstract: shape, dtype and sharding by dotted name (`models.blueprint.abstract_params`).
      seed: the same seed gives the same values on every mesh.
    """
    key = jax.random.key(seed)
    return {
        name: _maker(one.shape, one.dtype, one.sharding)(jax.random.fold_in(key, index))
        for index, (name, one) in enumerate(sorted(abstract.items()))
    }


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
