"""The attention kernel, interpreted, against `ops.attention`, and what must not change a bit."""

import jax
import numpy as np
import pytest
from ring_cases import Case, Ring, by_kernel, by_reference, compiled, draw, moved

from tpuinfer.ops.kernels import ring as kernels

CASES = {
    "decode": Case(kv_heads=1, group=4, head=128, length=64, block=32),
    "window": Case(kind="bfloat16", kv_heads=3, group=1, window=21, logits=True),
    "sinks": Case(group=3, window=56, sinks=5, cap=4.0),
    "int8": Case(kind="int8", group=3, head=64, length=256, block=128, window=70, cap=4.0),
    "fp8": Case(kind="float8_e4m3fn", kv_heads=1, group=5, window=30, logits=True),
    "prefill": Case(kv_heads=1, group=4, head=128, block=32, width=32, rows=3),
    "prefill, window": Case(
        kind="bfloat16", group=1, head=64, length=128, block=16, width=64, rows=3, window=20
    ),
    "prefill, sinks": Case(group=3, window=56, sinks=5, width=12, rows=3, cap=4.0),
    "prefill, int8": Case(kind="int8", group=1, window=20, width=32, rows=3, logits=True),
    "prefill, fp8": Case(
        kind="float8_e4m3fn", head=64, length=256, block=128, width=16, rows=3, window=200, sinks=3
    ),
}
BY_NAME = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True, scope="module")
def _queries_in_several_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_MOST_ROWS", 32)
        yield


@BY_NAME
def test_by_the_reference(name):
    """Lengths, wraps and slots at random; what is out of view is NaN."""
    case = CASES[name]
    exact = case.kind != "bfloat16"
    for seed in range(6):
        drawn = draw(case, seed)
        found, expected = (compiled(case, how)(drawn) for how in (by_kernel, by_reference))
        assert np.isfinite(found).all()
        real = np.arange(case.tokens)[None, :] < drawn.length[:, None]
        tolerance = {"rtol": 2e-5, "atol": 2e-6} if exact else {"rtol": 2e-2, "atol": 2e-3}
        np.testing.assert_allclose(found[real], expected[real], **tolerance)
        assert (found[~real.any(axis=1)] == 0).all()


@pytest.mark.parametrize("name", ["window", "int8"])
def test_slots_and_neighbours_change_no_bit(name):
    case = CASES[name]
    run, drawn = compiled(case, by_kernel), draw(case, 3, junk=False)
    drawn = drawn._replace(newest=np.array([9, 90, 300, 40], np.int32), length=np.ones(4, np.int32))
    alone = run(drawn)
    assert np.isfinite(alone).all()
    assert (alone != 0).all(axis=-1).all()
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(run(moved(drawn, order)), alone[order])
    for newest in (-1, 15, 63, 1000):
        others = np.array([9, newest, newest, 40], np.int32)
        live = (others >= 0).astype(np.int32)
        crowded = run(drawn._replace(newest=np.maximum(others, 0), length=live))
        np.testing.assert_array_equal(crowded[[0, 3]], alone[[0, 3]])


def test_rows_of_a_prefill_do_not_depend_on_their_neighbours():
    case = CASES["prefill, int8"]
    run, drawn = compiled(case, by_kernel), draw(case, 1, junk=False)
    full = drawn._replace(
        newest=np.array([70, 3, 20], np.int32), length=np.array([32, 7, 20], np.int32)
    )
    both = run(full)
    assert np.isfinite(both).all()
    for kept in range(3):
        length = np.where(np.arange(3) == kept, full.length, 0)
        alone = run(full._replace(length=length.astype(np.int32)))
        np.testing.assert_array_equal(alone[kept, : length[kept]], both[kept, : length[kept]])


@pytest.mark.parametrize("name", ["window", "prefill, int8"])
def test_where_all_rows_are_idle_the_answer_is_zeros(name):
    drawn = draw(CASES[name], 1)
    idle = drawn._replace(length=np.zeros_like(drawn.length))
    assert (compiled(CASES[name], by_kernel)(idle) == 0).all()


def rings(*lengths, kv_heads=1, head=128, dtype="bfloat16", scales=False):
    made = []
    for length in lengths:
        array = jax.ShapeDtypeStruct((2, kv_heads, length, head), dtype)
        scale = jax.ShapeDtypeStruct(array.shape[:3], "float32") if scales else None
        made.append(Ring(array, array, None, 0, scale, scale))
    return made


@pytest.mark.parametrize(
    ("given", "block", "columns"),
    [
        (rings(2048), 512, 1024),  # 512 KiB of keys and values
        (rings(2048, kv_heads=8), 512, 512),
        (rings(512), 512, 512),
        (rings(2048, 8192, 1536), 512, 512),  # one size for all classes, which divides them
        (rings(2048, dtype="int8", scales=True), 512, 2048),
        (rings(64, dtype="int8", scales=True), 16, 64),  # no whole tile, but the whole ring
    ],
)
def test_columns_of_a_visit(given, block, columns):
    assert kernels.why_not(given, block) is None
    assert kernels.columns_of(given, block) == columns


@pytest.mark.parametrize(
    ("given", "block", "why"),
    [
        (rings(64, dtype="float16"), 16, "rings of float16"),
        (rings(64, head=20), 16, "heads of 20 numbers, which 8 does not divide"),
        (rings(64, 96, dtype="int8", scales=True), 16, "rings of 64, 96 columns, read by 16"),
        (rings(2048, 96, head=64), 16, "rings of 2048, 96 columns, read by 16"),
    ],
)
def test_what_it_cannot_take(given, block, why):
    assert kernels.why_not(given, block) == why
