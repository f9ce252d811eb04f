"""Rows of a program call, laid out so that each data shard owns an equal, contiguous part."""

import dataclasses

import jax
import jax.numpy as jnp

from tpuinfer.ops.sampling import SamplingRows


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


def asking(sampling: SamplingRows, live: jax.Array) -> SamplingRows:
    """How each row samples; one that is not live asks for nothing that costs anything."""
    return dataclasses.replace(
        sampling,
        temperature=jnp.where(live, sampling.temperature, 0.0),
        logprobs=jnp.where(live, sampling.logprobs, -1),
    )
