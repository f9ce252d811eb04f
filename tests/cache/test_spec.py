"""Sizes of rings, by hand."""

import dataclasses

import jax.numpy as jnp
import pytest

from tpuinfer.cache.spec import RING_AXES, RingSpec, View, ring_length, view

SPEC = RingSpec(slots=3, kv_heads=2, length=16, head_dim=4, dtype="bfloat16")


def test_shape_and_bytes_by_hand():
    assert SPEC.shape == (3, 2, 16, 4)
    assert SPEC.bytes == 2 * (3 * 2 * 16 * 4) * 2
    assert SPEC.abstract().shape == SPEC.shape
    assert SPEC.abstract().dtype == jnp.bfloat16
    assert len(RING_AXES) == len(SPEC.shape)


def test_a_ring_holds_whole_blocks():
    assert [ring_length(n, 8) for n in (1, 8, 9, 16)] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    ("window", "stop", "roll"),
    [
        (None, View(16), View(16, 14, 2)),
        (6, View(6, 6), View(6, 6)),
        (15, View(15, 15), View(15, 15)),
        (16, View(16), View(16, 14, 2)),
        (100, View(16), View(16, 14, 2)),
    ],
)
def test_what_a_layer_keeps_of_16_tokens(window, stop, roll):
    assert view(16, window, rolls=False, sinks=2) == stop
    assert view(16, window, rolls=True, sinks=2) == roll


def test_steps_that_write_several_tokens_need_as_many_columns_more():
    """Unless nothing is ever overwritten."""
    columns = [
        view(16, window, rolls=rolls, sinks=2, per_step=4).columns
        for window, rolls in ((6, False), (6, True), (None, False), (None, True))
    ]
    assert columns == [9, 9, 16, 19]


def test_a_ring_that_cannot_hold_what_is_seen_is_refused():
    dataclasses.replace(SPEC, window=14, sinks=2)
    with pytest.raises(AssertionError):
        dataclasses.replace(SPEC, window=15, sinks=2)
    with pytest.raises(AssertionError):
        dataclasses.replace(SPEC, sinks=2)
