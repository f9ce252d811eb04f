"""Ways to break reproducibility, each by one line where the promise is kept.

A mutation patches a function of tpuinfer; the programs that are compiled meanwhile have it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tpuinfer.cache import held, ring, write
from tpuinfer.engine import accept, engine
from tpuinfer.engine.request import Request
from tpuinfer.models import placed
from tpuinfer.ops import sampling
from tpuinfer.programs.buckets import Chunk, cut
from tpuinfer.programs.compile import Program, compile_programs
from tpuinfer.quant import dots
from tpuinfer.quant.rows import Rounded
from tpuinfer.testing.tiny import Tiny

_write, _uniforms = write.write, sampling.uniforms
_round_activations, _round_rows = dots.round_activations, ring.round_rows

Mutation = Callable[[pytest.MonkeyPatch], None]


def padding_writes(patch: pytest.MonkeyPatch) -> None:
    """A chunk writes its whole width, real or not."""

    def writing(into: held.Ring, k: Rounded, v: Rounded, rows: held.Rows, *where: Any) -> held.Ring:
        length = jnp.where(rows.length > 0, k.values.shape[2], 0)
        return _write(into, k, v, dataclasses.replace(rows, length=length), *where)

    patch.setattr(write, "write", writing)


def idle_rows_write(patch: pytest.MonkeyPatch) -> None:
    """A row with nothing to do writes all the same, into the slot that it happens to name."""

    def writing(into: held.Ring, k: Rounded, v: Rounded, rows: held.Rows, *where: Any) -> held.Ring:
        length = jnp.where(rows.length == 0, k.values.shape[2], rows.length)
        return _write(into, k, v, dataclasses.replace(rows, length=length), *where)

    patch.setattr(write, "write", writing)


def key_of_the_neighbour(patch: pytest.MonkeyPatch) -> None:
    """A row draws with the seed, choice and position of the row before it."""

    def uniforms(rows: sampling.SamplingRows, positions: jax.Array) -> jax.Array:
        return jnp.roll(_uniforms(rows, positions), 1, axis=0)

    patch.setattr(sampling, "uniforms", uniforms)


def plain_sum(patch: pytest.MonkeyPatch) -> None:
    """Sums over the model axis are left to the compiler's own all-reduce."""

    def summed(partial: jax.Array, mesh_axis: str, *how: Any) -> jax.Array:
        return jax.lax.psum(partial, mesh_axis)

    patch.setattr(placed, "reduce_model", summed)


def activations_by_the_batch(patch: pytest.MonkeyPatch) -> None:
    """All rows of a product are rounded by one scale, that of the largest of them."""

    def rounded(x: jax.Array, planes: int) -> tuple[list[jax.Array], jax.Array]:
        largest = jnp.argmax(jnp.abs(x).max(axis=1))
        _, scale = _round_activations(x[largest][None], planes)
        fill = (scale * 127).astype(x.dtype)
        made, own = _round_activations(
            jnp.concatenate([x, jnp.broadcast_to(fill, (len(x), 1))], 1), planes
        )
        return [plane[:, :-1] for plane in made], own

    patch.setattr(dots, "round_activations", rounded)


def ring_scales_by_the_call(patch: pytest.MonkeyPatch) -> None:
    """What one call writes to a ring has one scale a head: that of all its rows and tokens."""

    def rounded(rows: jax.Array, dtype: Any) -> Rounded:
        most = jnp.abs(rows.astype(jnp.float32)).max(axis=(0, 2, 3), keepdims=True)
        wide = jnp.concatenate([rows, jnp.broadcast_to(most, (*rows.shape[:3], 1))], axis=3)
        made = _round_rows(wide, dtype)
        return Rounded(made.values[..., :-1], made.scale)

    patch.setattr(ring, "round_rows", rounded)


def chunks_by_load(patch: pytest.MonkeyPatch) -> None:
    """While others wait, no prompt has a short tail: fewer kinds of chunks, fuller batches."""
    add, waiting = engine.Engine.add, 0

    def adding(self: engine.Engine, request: Request) -> None:
        nonlocal waiting
        waiting = self.metrics.waiting
        add(self, request)

    def by_load(length: int, chunk: int, buckets: Sequence[int]) -> tuple[Chunk, ...]:
        return cut(length, chunk, buckets[-1:] if waiting else buckets)

    patch.setattr(engine.Engine, "add", adding)
    patch.setattr(accept, "cut", by_load)


def mutated(model: Tiny, mutation: Mutation, *names: str) -> dict[str, Program]:
    """The programs of a model, those of these names compiled anew with the mutation in them."""
    whole = {*names} == {*model.specs}
    kept = {} if whole else model.programs  # compiled before anything is patched
    with pytest.MonkeyPatch.context() as patch:
        mutation(patch)
        again = dataclasses.replace(model)  # nothing traced or compiled yet
        return {**kept, **compile_programs([again.specs[name] for name in names])}
