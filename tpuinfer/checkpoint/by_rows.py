"""Work on the rows of arrays, a block of rows at a time: what it holds in between is a block's."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 2**22
"""About how many elements of the widest array are worked on in one go."""


def by_rows(work: Callable[[Any], Any], values: Any, outs: int) -> Any:
    """`work(values)`, of arrays whose first `outs` dimensions are the same rows.

    Args:
      work: a tree of arrays [R, ...] -> another; a row of what it makes comes of that row alone.
    """
    lead = jax.tree.leaves(values)[0].shape[:outs]
    rows = math.prod(lead)
    flat = jax.tree.map(lambda one: one.reshape(rows, *one.shape[outs:]), values)
    width = max(math.prod(one.shape[1:]) for one in jax.tree.leaves(flat))
    height = _height(rows, max(1, BLOCK // width))
    whole = rows // height * height
    if whole == height == rows:
        made = work(flat)
    else:
        blocks = jax.tree.map(
            lambda one: one[:whole].reshape(rows // height, height, *one.shape[1:]), flat
        )
        made = jax.tree.map(
            lambda one: one.reshape(whole, *one.shape[2:]), jax.lax.map(work, blocks)
        )
        if whole < rows:
            rest = work(jax.tree.map(lambda one: one[whole:], flat))
            made = jax.tree.map(lambda one, end: jnp.concatenate((one, end)), made, rest)
    return jax.tree.map(lambda one: one.reshape(*lead, *one.shape[1:]), made)


def _height(rows: int, most: int) -> int:
    """Rows of a block: a number not far below `most` that divides all of them, if there is one."""
    if most >= rows:
        return rows
    return next((n for n in range(most, most // 4, -1) if rows % n == 0), most)
