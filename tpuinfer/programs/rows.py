"""Rows of a program call, laid out so that each data shard owns an equal, contiguous part."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from tpuinfer.ops.sampling import SamplingRows
from tpuinfer.ops.steering import GENERATED
from tpuinfer.sharding.layout import Layout

T = TypeVar("T")


def pad_rows(x: jax.Array, shards: int, rows: int) -> jax.Array:
    """Pad [shards * r, ...] to [shards * max(r, rows), ...] within each shard.

    shards = 2, r = 1, rows = 2      a b   ->   a 0 | b 0
    """
    own = x.shape[0] // shards
    if own >= rows:
        return x
    parts = x.reshape(shards, own, *x.shape[1:])
    padding = [(0, 0), (0, rows - own)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(parts, padding).reshape(shards * rows, *x.shape[1:])


def unpad_rows(x: jax.Array, shards: int, rows: int) -> jax.Array:
    """Undo `pad_rows`: keep the first `rows` rows of every shard."""
    own = x.shape[0] // shards
    if own == rows:
        return x
    parts = x.reshape(shards, own, *x.shape[1:])[:, :rows]
    return parts.reshape(shards * rows, *x.shape[1:])


def count_tokens(counts: jax.Array, at: jax.Array, tokens: jax.Array, layout: Layout) -> jax.Array:
    """`counts` [B, V] with one more of `tokens` [R] generated for the slots `at` [R].

    Slots beyond all are left out. All of it happens on every device: the compiler would cut the
    rows over the data shards, and gather the whole of the counts afterwards.
    """
    at, tokens = (layout.constrain(x, (None,)) for x in (at, tokens))
    counts = layout.constrain(counts, (None, None)).at[at, tokens].add(GENERATED, mode="drop")
    return layout.constrain(counts, (None, None))


def everywhere(tree: T, layout: Layout) -> T:
    """Small arrays, whole on every device: left alone, the compiler cuts them and sums the cuts."""
    whole: T = jax.tree.map(lambda x: layout.constrain(x, (None,) * x.ndim), tree)
    return whole


def asking(sampling: SamplingRows, live: jax.Array) -> SamplingRows:
    """How each row samples; one that is not live asks for nothing that costs anything."""
    silent = {
        "temperature": 0.0,
        "logprobs": -1,
        "repetition": 1.0,
        "presence": 0.0,
        "frequency": 0.0,
        "biased": False,
        "constrained": False,
    }
    quiet = {
        name: jnp.where(live, getattr(sampling, name), value) for name, value in silent.items()
    }
    return dataclasses.replace(sampling, **quiet)
