"""Everything that lives on the device between two calls: the decode state, and the tables."""

import dataclasses
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.cache.held import Ring, Rings
from tpuinfer.cache.spec import RING_AXES, SCALE_AXES, RingSpec
from tpuinfer.ops.sampling import SamplingRows
from tpuinfer.ops.steering import WORD, Biases, Tables
from tpuinfer.sharding.layout import Layout

T = TypeVar("T")


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
      barred: [B] int32, how many tokens the slot must still make before `stops` may be picked.
      counts: [B, V] int32, how often each token is there, as `ops.steering` counts; kept for slots
        with penalties only. Carried like the rings, never gathered.
    """

    rings: tuple[Rings, ...]
    token: jax.Array
    position: jax.Array
    live: jax.Array
    remaining: jax.Array
    sampling: SamplingRows
    stops: jax.Array
    barred: jax.Array
    counts: jax.Array

    def small(self) -> "DecodeState":
        """What is small enough to be gathered and put back by row: all but rings and counts."""
        return dataclasses.replace(self, rings=(), counts=cast(Any, ()))


def shaped(shape: tuple[int, ...], dtype: Any, sharding: Any = None) -> Any:
    """A ShapeDtypeStruct, typed to stand where an array will."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def row_arrays(rows: int, max_stop_ids: int) -> tuple[SamplingRows, Any]:
    """Shapes of what a request brings along: sampling settings and stop ids, for `rows` rows."""
    f32, i32, u32 = (shaped((rows,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.uint32))
    boolean = shaped((rows,), bool)
    sampling = SamplingRows(
        temperature=f32,
        top_p=f32,
        min_p=f32,
        top_k=i32,
        seed=u32,
        choice=i32,
        logprobs=i32,
        repetition=f32,
        presence=f32,
        frequency=f32,
        biased=boolean,
        constrained=boolean,
    )
    return sampling, shaped((rows, max_stop_ids), jnp.int32)


def abstract_state(
    rings: tuple[tuple[RingSpec, ...], ...], layout: Layout, *, vocab: int, max_stop_ids: int
) -> DecodeState:
    """The state as ShapeDtypeStructs with their shardings: enough to compile and to plan.

    Args:
      rings: for each layer, one per class of slots.
    """
    slots = sum(spec.slots for spec in rings[0])
    whole = NamedSharding(layout.mesh, PartitionSpec())
    cut = layout.sharding(RING_AXES)

    def ring(spec: RingSpec) -> Ring:
        array = shaped(spec.shape, spec.abstract().dtype, cut)
        scales: tuple[Any, Any] = (None, None)
        if spec.is_codes:
            one = shaped(spec.shape[:-1], jnp.float32, layout.sharding(SCALE_AXES))
            scales = one, one
        return Ring(array, array, spec.window, spec.sinks, *scales, spec.compute)

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
        barred=i32,
        counts=shaped((slots, vocab), jnp.int32),
    )
    placed: DecodeState = jax.tree.map(lambda x: shaped(x.shape, x.dtype, whole), small)
    layers = tuple(tuple(ring(spec) for spec in classes) for classes in rings)
    return dataclasses.replace(placed, rings=layers)


def abstract_tables(state: DecodeState, max_biases: int) -> Tables:
    """The tables that steer the slots of a state, abstract like it and whole on every device."""
    slots, vocab = state.counts.shape
    whole = state.counts.sharding
    entries = (slots, max_biases)
    return Tables(
        masks=shaped((slots, -(-vocab // WORD)), jnp.int32, whole),
        biases=Biases(shaped(entries, jnp.int32, whole), shaped(entries, jnp.float32, whole)),
    )


def zeros(abstract: T) -> T:
    """What is abstract, made on the devices and all zeros: an idle state, empty tables."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    make = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract),
        out_shardings=shardings,
    )
    made: T = make()
    return made
