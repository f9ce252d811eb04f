"""The planner against the TPU compiler, with no TPU. All cells: `python -m tests.planning.grid`."""

import pytest

from tests.planning import described, grid
from tests.planning.asked import ask
from tests.planning.described import Cell
from tpuinfer.planning import memory
from tpuinfer.planning.question import lay_out
from tpuinfer.programs.closed_set import decode_name

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not described.LIBTPU, reason=described.WHY),
]


@pytest.fixture(scope="module")
def experts():
    return grid.run(grid.CELLS["gpt-oss-20b"], [decode_name()])


def test_memory_of_a_mixture_is_within_3_percent_of_the_compilers(experts):
    assert not experts.refused
    assert experts.reckoned.fits
    assert abs(experts.off) <= 0.03


def test_its_experts_stay_where_they_are(experts):
    """Each is 2880 x 2880 x 3: what is gathered in a step is activations, and less than one."""
    decode = experts.programs[decode_name()]
    assert decode.ring_copies == 0
    assert set(decode.collectives) == {"reduce-scatter", "all-gather"}
    sums = 2 * 24 + 1
    assert decode.collectives["reduce-scatter"].count == sums
    assert decode.collectives["all-gather"].nbytes <= 1.01 * sums * 64 * 4096 * 2


@pytest.mark.parametrize(
    ("cell", "changed"),
    [
        (Cell(steps=8), {}),
        (Cell(steps=8, data=2), {"mesh": "2x4"}),
        (Cell("int8", "int8"), {"weights": "int8", "ring": "int8"}),
    ],
)
def test_what_lies_in_memory_is_the_compilers_and_scratch_is_enough_for_a_decode(cell, changed):
    """The estimate of scratch is for the prefill that needs most."""
    question = ask(**changed)
    reckoned = memory.estimate(lay_out(question), question.topology)
    made = described.compiled(cell)
    lying = reckoned.weights + reckoned.rings + reckoned.state
    assert lying == pytest.approx(made.arguments, rel=0.002)
    assert made.temporary <= reckoned.temporaries <= made.temporary + 0.05 * lying
