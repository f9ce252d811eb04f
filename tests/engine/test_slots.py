"""Free slots go round the data shards, class by class."""

import random

import pytest

from tpuinfer.engine.slots import SlotPool
from tpuinfer.programs.slots import SlotLayout


def pool(*counts: int, shards: int = 1) -> SlotPool:
    """Classes of that many slots each; how long their rings are does not matter here."""
    return SlotPool(SlotLayout(counts, tuple(range(1, len(counts) + 1)), shards))


def test_round_robin_over_the_shards() -> None:
    one = pool(6, shards=3)
    assert [one.acquire(0) for _ in range(7)] == [0, 2, 4, 1, 3, 5, None]


def test_each_class_goes_its_own_round() -> None:
    """The example in the docstring."""
    one = pool(4, 2, shards=2)
    assert [one.acquire(0), one.acquire(1), one.acquire(0)] == [0, 2, 3]
    assert [one.free_in(0), one.free_in(1), one.used] == [2, 1, 3]
    assert [one.acquire(1), one.acquire(1), one.acquire(0), one.acquire(0)] == [5, None, 1, 4]
    one.release(2)
    assert [one.free_in(0), one.free_in(1)] == [0, 1]
    assert [one.acquire(0), one.acquire(1)] == [None, 2]


def test_one_shard_is_a_line() -> None:
    one = pool(3)
    assert [one.acquire(0), one.acquire(0)] == [0, 1]
    one.release(0)
    assert [one.acquire(0), one.acquire(0), one.acquire(0)] == [2, 0, None]


def test_a_full_shard_is_passed_over() -> None:
    one = pool(4, shards=2)
    assert [one.acquire(0) for _ in range(4)] == [0, 2, 1, 3]
    one.release(2)
    one.release(3)
    assert [one.acquire(0), one.acquire(0), one.acquire(0)] == [2, 3, None]


def test_a_released_slot_goes_back_to_its_own_shard() -> None:
    one = pool(4, shards=2)
    assert [one.acquire(0) for _ in range(4)] == [0, 2, 1, 3]
    for slot in (3, 2, 1):
        one.release(slot)
    assert [one.acquire(0), one.acquire(0), one.acquire(0)] == [1, 3, 2]


def test_a_slot_is_released_once() -> None:
    one = pool(2)
    with pytest.raises(AssertionError, match="slot 1 is not taken"):
        one.release(1)
    one.acquire(0)
    one.release(0)
    with pytest.raises(AssertionError, match="slot 0 is not taken"):
        one.release(0)


def test_no_slot_is_lost_or_given_twice() -> None:
    chance = random.Random(0)
    layout = SlotLayout((12, 4, 8), (8, 16, 64), shards=4)
    one, taken = SlotPool(layout), set()
    for _ in range(3000):
        ring_class = chance.randrange(3)
        held = {slot for slot in taken if layout.class_of(slot) == ring_class}
        if taken and chance.random() < 0.5:
            slot = chance.choice(sorted(taken))
            taken.remove(slot)
            one.release(slot)
        elif (given := one.acquire(ring_class)) is None:
            assert len(held) == layout.counts[ring_class]
        else:
            assert given not in taken
            assert layout.class_of(given) == ring_class
            taken.add(given)
        assert one.used == len(taken)
        assert sum(map(one.free_in, range(3))) == 24 - len(taken)
