"""The numbering of slots, by hand and against a list."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.errors import ConfigError
from tpuinfer.programs.slots import SlotLayout

TWO = SlotLayout((4, 2), (2048, 16384), shards=2)


def test_the_drawn_example():
    assert (TWO.slots, TWO.per_shard, TWO.capacity) == (6, 3, 16384)
    assert TWO.spans == (range(2), range(2, 3))
    assert [TWO.shard_of(slot) for slot in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [TWO.class_of(slot) for slot in range(6)] == [0, 0, 1, 0, 0, 1]
    assert [TWO.capacity_of(slot) for slot in range(6)] == [2048, 2048, 16384] * 2
    assert [list(TWO.members(k, s)) for k in (0, 1) for s in (0, 1)] == [[0, 1], [3, 4], [2], [5]]


@given(
    per_shard=st.lists(st.integers(1, 4), min_size=1, max_size=4), shards=st.sampled_from([1, 2, 4])
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_every_slot_is_in_one_place(per_shard, shards):
    counts = tuple(count * shards for count in per_shard)
    layout = SlotLayout(counts, tuple(range(8, 8 + len(counts))), shards)
    wanted = [
        (shard, kind)
        for shard in range(shards)
        for kind, n in enumerate(per_shard)
        for _ in range(n)
    ]
    found = [(layout.shard_of(slot), layout.class_of(slot)) for slot in range(layout.slots)]
    assert found == wanted
    for shard, kind in set(wanted):
        members = [slot for slot, place in enumerate(wanted) if place == (shard, kind)]
        assert list(layout.members(kind, shard)) == members
        assert {layout.capacity_of(slot) for slot in members} == {layout.capacities[kind]}


@pytest.mark.parametrize(("count", "near"), [(1, 4), (3, 4), (6, 8), (7, 8), (9, 8)])
def test_a_class_that_does_not_divide_names_the_nearest(count, near):
    message = f"class of {count} slots does not divide over 4 data shards; nearest: {near}$"
    with pytest.raises(ConfigError, match=message):
        SlotLayout((4, count), (8, 16), shards=4)


def test_no_slots_are_refused():
    with pytest.raises(ConfigError, match="a class of 0 slots"):
        SlotLayout((0,), (8,))


@pytest.mark.parametrize("capacities", [(16, 8), (8, 8), (8,)])
def test_capacities_ascend(capacities):
    with pytest.raises(AssertionError):
        SlotLayout((1, 1), capacities)
