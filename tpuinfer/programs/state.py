"""Everything that lives on the device between two calls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.cache.ring import Ring, Rings
from tpuinfer.cache.spec import RING_AXES, RingSpec
from tpuinfer.ops.sampling import SamplingRows
from tpuinfer.sharding.rules import Layout


@struct.dataclass
class DecodeState:
    """The device's side of every slot; passed in, donated, passed out.

    The rings are cut over the mesh; the small per-slot arrays are whole on every device.

    Attributes:
      rings: for each layer, one per class of slots.
      token: [B] int32, the last token sampled for each slot; not in the ring yet.
      position: [B] int32, the position that `token` takes.
      live: [B] bool, whether the slot decodes.
      remaining: [B] int32, tokens the slot may still generate.
      sampling: how each slot samples.
      stops: [B, MAX_STOP_IDS] int32, token ids that end the row; -1 = none.
    """

    rings: tuple[Rings, ...]
    token: jax.Array
    position: jax.Array
    live: jax.Array
    remaining: jax.Array
    sampling: SamplingRows
    stops: jax.Array


def shaped(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    """A ShapeDtypeStruct, typed to stand where an array will."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def row_arrays(rows: int, max_stop_ids: int) -> tuple[SamplingRows, Any]:
    """Shapes of what a request brings along: sampling settings and stop ids, for `rows` rows."""
    f32, i32, u32 = (shaped((rows,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.uint32))
    sampling = SamplingRows(
        temperature=f32, top_p=f32, min_p=f32, top_k=i32, seed=u32, choice=i32, logprobs=i32
    )
    return sampling, shaped((rows, max_stop_ids), jnp.int32)


def abstract_state(
    rings: tuple[tuple[RingSpec, ...], ...], layout: Layout, max_stop_ids: int
) -> DecodeState:
    """The state as ShapeDtypeStructs with their shardings: enough to compile and to plan.

    Args:
      rings: for each layer, one per class of slots.
    """
    slots = sum(spec.slots for spec in rings[0])
    whole = NamedSharding(layout.mesh, PartitionSpec())
    cut = layout.sharding(RING_AXES)

    def ring(spec: RingSpec) -> Ring:
        array = shaped(spec.shape, jnp.dtype(spec.dtype), cut)
        return Ring(array, array, spec.window, spec.sinks)

    i32 = shaped((slots,), jnp.int32)
    sampling, stops = row_arrays(slots, max_stop_ids)
    small = DecodeState(
        rings=(),
        token=i32,
        position=i32,
        live=shaped((slots,), bool),
        remaining=i32,
        sampling=sampling,
        stops=stops,
    )
    placed: DecodeState = jax.tree.map(lambda x: shaped(x.shape, x.dtype, whole), small)
    layers = tuple(tuple(ring(spec) for spec in classes) for classes in rings)
    return dataclasses.replace(placed, rings=layers)


def zeros(abstract: DecodeState) -> DecodeState:
    """An idle state, made on the devices."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    make = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract),
        out_shardings=shardings,
    )
    state: DecodeState = make()
    return state
