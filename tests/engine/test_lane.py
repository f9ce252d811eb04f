"""Who would wait for want of a slot, by hand; the scheduler tests the rest of a lane."""

import pytest

from tpuinfer.engine.lane import shortage


@pytest.mark.parametrize(
    ("wanted", "free", "left"),
    [
        ([0, 0], [0, 0], 0),
        ([2, 0], [2, 0], 0),
        ([3, 0], [2, 1], 0),  # a short one borrows the long ring
        ([3, 1], [2, 1], 1),  # it is spoken for
        ([0, 3], [5, 1], 2),  # a long one cannot borrow a short ring
        ([1, 2, 0], [0, 1, 3], 0),
        ([2, 2, 1], [0, 1, 2], 2),
    ],
)
def test_shortage(wanted: list[int], free: list[int], left: int) -> None:
    assert shortage(wanted, free) == left
