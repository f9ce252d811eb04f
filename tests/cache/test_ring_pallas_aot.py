"""A layer's rings on a described TPU: written in place, never copied.

How often whole programs read them is in `tests/planning/test_aot_decode.py`.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.planning import described
from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import Asked, RingAttention
from tpuinfer.platform import platform_settings
from tpuinfer.quant.rows import is_codes, stored
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.presets import PRESETS

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]

SLOTS, KV, HEADS, LENGTH = 64, 8, 32, 2048


@functools.cache
def compiled(mode, kind, head, rules="1d"):
    """Two layers, one after the other, on v5e:2x4 with data=2."""
    sizes = {"batch": SLOTS, "heads": HEADS, "kv_heads": KV, "length": 0}
    layout = resolve(PRESETS[rules], described.described(data=2), sizes)
    attend = RingAttention(layout, 512, mode, platform_settings("tpu").attention)

    def shaped(shape, dtype, axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes))

    whole = ("batch", "kv_heads", "length", "head_dim")
    array = shaped((SLOTS, KV, LENGTH, head), stored(kind), whole)
    scale = shaped(array.shape[:3], "float32", whole[:3]) if is_codes(kind) else None
    ring = Ring(array, array, None, 0, scale, scale, "bfloat16")
    rows, width = (SLOTS, 1) if mode == "decode" else (4, 256)
    x = [
        shaped((rows, width, heads, head), "bfloat16", ("batch", None, axis, "head_dim"))
        for heads, axis in ((HEADS, "heads"), (KV, "kv_heads"), (KV, "kv_heads"))
    ]
    numbers = [shaped((rows,), "int32", ("batch",))] * 3

    def run(rings, asked, rows):
        out, first = attend(asked, (rings[0],), rows)
        out, second = attend(asked._replace(q=out), (rings[1],), rows)
        return (first[0], second[0]), out

    made = jax.jit(run, donate_argnums=0).lower((ring, ring), Asked(*x), Rows(*numbers)).compile()
    each = SLOTS // 2 * KV // 4 * LENGTH * (head * jnp.dtype(kind).itemsize)
    return made, each


@pytest.mark.parametrize(
    ("mode", "kind", "head"),
    [
        ("decode", "bfloat16", 128),
        ("decode", "int8", 64),
        ("decode", "float8_e4m3fn", 128),
        ("prefill", "bfloat16", 64),
        ("prefill", "int8", 128),
        ("prefill", "float8_e4m3fn", 64),
    ],
)
def test_rings_stay_where_they_are(mode, kind, head):
    made, each = compiled(mode, kind, head)
    memory = made.memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * each
    assert memory.temp_size_in_bytes < each / 2
    writes = head == 64 or mode == "prefill"  # else the scatter does
    assert made.as_text().count('custom_call_target="tpu_custom_call"') == (4 if writes else 2)


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_rings_that_are_cut_along_their_length_stay_too(mode):
    """By XLA's scatter; what devices have seen goes to the keepers of its heads, once a layer."""
    made, each = compiled(mode, "bfloat16", 128, "context")
    memory, text = made.memory_analysis(), made.as_text()
    assert memory.alias_size_in_bytes >= 4 * each
    assert memory.temp_size_in_bytes < each / 2
    sent = [line for line in text.splitlines() if " all-to-all(" in line]
    assert len(sent) == 4  # the sums of weights, and the values, of two layers
    assert "tpu_custom_call" not in text
