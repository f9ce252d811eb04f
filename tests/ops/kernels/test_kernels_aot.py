"""Every kernel through the TPU compiler, with no TPU: what it refuses, and what it copies."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from ring_cases import Ring

from tests.planning import described
from tpuinfer.ops import attention
from tpuinfer.ops.kernels import ring as kernels
from tpuinfer.ops.kernels.write import write_rows
from tpuinfer.quant.rows import is_codes, stored

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]

SLOTS, LENGTH, BLOCK = 64, 2048, 512
V5E, V6E, V5P = "v5e:2x2", "v6e:2x2", "v5p:2x2x1"
WIDTHS = pytest.mark.parametrize("width", [None, 64], ids=["decode", "prefill"])


@functools.cache
def place(topology):
    return SingleDeviceSharding(described.described(topology).devices.flat[0])


def of(topology, shape, kind="int32"):
    return jax.ShapeDtypeStruct(shape, kind, sharding=place(topology))


def ring_of(topology, kind, kv_heads, head, window=None, sinks=0):
    array = of(topology, (SLOTS, kv_heads, LENGTH, head), stored(kind))
    scale = of(topology, array.shape[:3], "float32") if is_codes(kind) else None
    return Ring(array, array, window, sinks, scale, scale)


def compiled(topology, kind, width=None, kv_heads=2, group=4, head=128, **features):
    """A prefill of two rows `width` wide, or a decode of all slots."""
    cap, logits = features.pop("cap", None), features.pop("logits", False)
    rows, tokens = (SLOTS, 1) if width is None else (2, width)
    ring = ring_of(topology, kind, kv_heads, head, **features)
    q = of(topology, (rows, kv_heads, group, tokens, head), _multiplies(kind))
    sink_q = q if ring.sinks else None
    sink_logits = of(topology, (kv_heads * group,), "float32") if logits else None
    numbers, positions = of(topology, (rows,)), of(topology, (rows, tokens))
    block = kernels.columns_of([ring], BLOCK)
    if width is None:

        def decode(q, sink_q, positions, ring, newest, sink_logits):
            queries = attention.Queries(q, sink_q, positions, cap)
            return kernels.decode_attention(queries, ring, newest, sink_logits, block=block)

        args = (q, sink_q, positions, ring, numbers, sink_logits)
        return jax.jit(decode).lower(*args).compile()
    new = of(topology, (rows, kv_heads, width, head), kind)
    scale = None if ring.key_scale is None else of(topology, new.shape[:3], "float32")

    def prefill(q, sink_q, positions, ring, chunk, slots, length, sink_logits):
        queries = attention.Queries(q, sink_q, positions, cap)
        return kernels.prefill_attention(
            queries, ring, chunk, slots, length, sink_logits, block=block
        )

    chunk = attention.Columns(new, new, scale, scale)
    args = (q, sink_q, positions, ring, chunk, numbers, numbers, sink_logits)
    return jax.jit(prefill).lower(*args).compile()


def _multiplies(kind):
    return "float32" if kind == "float32" else "bfloat16"


def assert_no_ring_is_copied(made, kind):
    """What a program needs beside its arguments is less than half of keys or values."""
    heads = 2 * 64 * jnp.dtype(kind).itemsize
    assert made.memory_analysis().temp_size_in_bytes < SLOTS * LENGTH * heads / 2


@WIDTHS
@pytest.mark.parametrize(
    ("topology", "kind", "shape"),
    [
        (V5E, "bfloat16", {"head": 64, "group": 5, "window": 600, "logits": True}),
        (V6E, "int8", {"head": 128, "group": 5, "window": 600, "cap": 30.0, "logits": True}),
        (V5P, "float8_e4m3fn", {"head": 64, "window": 2040, "sinks": 4, "cap": 30.0}),
        (V5E, "int8", {"head": 64, "window": 2040, "sinks": 4, "cap": 30.0, "logits": True}),
        (V5E, "float8_e4m3fn", {"head": 128, "window": 600}),
        (V5E, "float32", {"head": 64, "group": 3}),
    ],
    ids=lambda given: given if isinstance(given, str) else f"head{given['head']}",
)
def test_attention_reads_rings_where_they_lie(topology, kind, shape, width):
    assert_no_ring_is_copied(compiled(topology, kind, width, **shape), kind)


@pytest.mark.parametrize(
    ("width", "shape"),
    [
        (None, {"head": 80, "group": 1, "kv_heads": 32}),
        (None, {"head": 96, "group": 3, "kv_heads": 8}),
        (None, {"head": 128, "group": 1, "kv_heads": 40}),
        (512, {"head": 256, "group": 2, "kv_heads": 16, "cap": 50.0}),
        (512, {"head": 64, "group": 71, "kv_heads": 1}),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else None,
)
def test_heads_of_all_kinds_of_models(shape, width):
    """Each fits the memory that a v5e's compiler gives a kernel."""
    compiled(V5E, "bfloat16", width, **shape)


@pytest.mark.parametrize(
    ("topology", "kind", "rows", "width", "head"),
    [
        (V5E, "bfloat16", SLOTS, 1, 64),
        (V6E, "int8", SLOTS, 1, 64),
        (V5P, "float8_e4m3fn", 2, 256, 64),
        (V5E, "int8", 2, 256, 64),
        (V5E, "float8_e4m3fn", SLOTS, 1, 64),
        (V5E, "float32", 2, 256, 64),
        (V5E, "bfloat16", 2, 512, 128),
        (V6E, "float8_e4m3fn", 2, 256, 128),
        (V5P, "int8", 2, 512, 256),
    ],
)
def test_rows_are_written_in_place(topology, kind, rows, width, head):
    ring = of(topology, (SLOTS, 2, LENGTH, head), stored(kind))
    new = of(topology, (rows, 2, width, head), stored(kind))

    def run(keys, values, new, where):
        given = (keys, values), (new, new), *where
        made = write_rows(*given, sinks=3, turned=head % 128 != 0)
        return jax.lax.optimization_barrier(made)

    lowered = jax.jit(run, donate_argnums=(0, 1)).lower(
        ring, ring, new, (of(topology, (rows,)),) * 3
    )
    made = lowered.compile()
    whole = 2 * SLOTS * 2 * LENGTH * head * jnp.dtype(kind).itemsize
    assert made.memory_analysis().alias_size_in_bytes >= whole
    assert_no_ring_is_copied(made, kind)
