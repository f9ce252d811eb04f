"""The least time for a batch, by hand."""

import pytest

from tpuinfer.benchmark.bounds import Machine, ModelCost
from tpuinfer.benchmark.floor import floor
from tpuinfer.testing.tiny import TINY

COST = ModelCost(TINY, body=100, head=20, weight_bytes=1000, ring_bytes=8)


def test_memory_bound_decode_reads_weights_and_rings_once_a_step():
    """10 requests of 4 + 6 tokens on 5 slots: 10 steps, each with rings of 4 + 3 tokens."""
    seconds = floor(COST, Machine(bandwidth=100.0, matmul=1e18), 5)
    step = 1000 + 5 * (7 * TINY.layers) * 8
    assert seconds(10, 40, 60) == pytest.approx((1000 + 10 * step) / 100)


def test_arithmetic_bound_prefill_counts_every_prompt():
    one = COST.prefill(4).flops
    seconds = floor(COST, Machine(bandwidth=1e18, matmul=10.0), 5)
    assert seconds(10, 40, 10) == pytest.approx(10 * one / 10)


def test_nothing_takes_no_time():
    assert floor(COST, Machine(1.0, 1.0), 5)(0, 0, 0) == 0
