"""Whole decode programs as the TPU compiler compiles them, with no TPU: all bytes of HBM.

Eight steps in one dispatch, at full depth, from the embedding to the token: what is carried from
step to step must stay where it is, and logits must not be copied on their way to a token.
"""

import pytest

from tests.planning import described
from tests.planning.described import Cell

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]

STEPS, LAYERS = 8, 32


@pytest.fixture(scope="module", params=[1, 2], ids=["8", "2x4"])
def cell(request):
    return Cell(steps=STEPS, data=request.param)


@pytest.fixture(scope="module")
def decode(cell):
    return described.compiled(cell)


def test_all_that_moves_is_what_a_step_cannot_do_without(cell, decode):
    """Logits that all devices held whole, and counts brought to VMEM, made it 1.11."""
    parameters = (8.03e9 - 128_256 * 4096) * cell.data / 8
    keys_and_values = described.SLOTS * described.CONTEXT * LAYERS * 2 * 8 * 128 / 8
    assert decode.ideal == pytest.approx(2 * (parameters + keys_and_values), rel=0.01)
    assert decode.moved.nbytes <= 1.03 * decode.ideal * STEPS


def test_weights_and_rings_move_once_a_step(decode):
    assert decode.ratio(decode.weights, STEPS) <= 1.01
    assert decode.ratio(decode.rings, STEPS) <= 1.02
    assert decode.copies(decode.weights) == []


def test_the_state_is_carried_in_place(decode):
    assert decode.copies(decode.rings) == []
    counts = [name for name in decode.sizes if name == "state.counts"]
    assert decode.moved.of(counts) <= 0.01 * decode.bytes_of(counts) * STEPS
    assert decode.alias >= decode.bytes_of(decode.rings) + decode.bytes_of(counts) > 2.1e9
    assert decode.temporary <= 0.2e9


def test_two_sums_over_the_model_axis_a_layer_one_more_and_the_tokens(cell, decode):
    kinds = decode.moved.collectives()
    assert set(kinds) == {"reduce-scatter", "all-gather"}
    sums, gathers = kinds["reduce-scatter"], kinds["all-gather"]
    assert sums.count <= STEPS * (2 * LAYERS + 1)
    assert gathers.count <= STEPS * (2 * LAYERS + 2)
    # The tokens are a few kB; logits would be 33 MB a step.
    assert sums.nbytes <= STEPS * (2 * LAYERS + 1) * (described.SLOTS // cell.data) * 4096 * 2
    assert gathers.nbytes <= sums.nbytes + STEPS * 16_384
