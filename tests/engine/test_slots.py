"""Free slots go round the data shards."""

import random

import pytest

from tpuinfer.engine.slots import SlotPool


def test_round_robin_over_the_shards() -> None:
    pool = SlotPool(6, 3)
    assert [pool.acquire() for _ in range(7)] == [0, 2, 4, 1, 3, 5, None]
    assert [pool.shard_of(slot) for slot in range(6)] == [0, 0, 1, 1, 2, 2]


def test_one_shard_is_a_line() -> None:
    pool = SlotPool(3)
    assert [pool.acquire(), pool.acquire()] == [0, 1]
    pool.release(0)
    assert [pool.acquire(), pool.acquire(), pool.acquire()] == [2, 0, None]


def test_a_full_shard_is_passed_over() -> None:
    pool = SlotPool(4, 2)
    assert [pool.acquire() for _ in range(4)] == [0, 2, 1, 3]
    pool.release(2)
    pool.release(3)
    assert [pool.acquire(), pool.acquire(), pool.acquire()] == [2, 3, None]


def test_a_released_slot_goes_back_to_its_own_shard() -> None:
    pool = SlotPool(4, 2)
    assert [pool.acquire() for _ in range(4)] == [0, 2, 1, 3]
    for slot in (3, 2, 1):
        pool.release(slot)
    assert [pool.acquire(), pool.acquire(), pool.acquire()] == [1, 3, 2]


def test_misuse() -> None:
    with pytest.raises(AssertionError, match="do not divide"):
        SlotPool(6, 4)
    with pytest.raises(AssertionError, match="not taken"):
        SlotPool(2).release(1)


def test_no_slot_is_lost_or_given_twice() -> None:
    chance = random.Random(0)
    pool, taken = SlotPool(12, 4), set()
    for _ in range(2000):
        if taken and chance.random() < 0.5:
            slot = chance.choice(sorted(taken))
            taken.remove(slot)
            pool.release(slot)
        elif (given := pool.acquire()) is None:
            assert len(taken) == 12
        else:
            assert given not in taken
            taken.add(given)
        assert pool.free == 12 - len(taken)
