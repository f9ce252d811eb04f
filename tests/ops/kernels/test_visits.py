"""The work list of the kernels against what a list of columns says."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.ops import attention
from tpuinfer.ops.kernels.visits import (
    Columns,
    held_position,
    list_visits,
    own_span,
    ring_span,
)

COLUMNS = st.builds(
    Columns,
    length=st.just(24),
    block=st.sampled_from([4, 8, 24]),
    window=st.sampled_from([None, 1, 5, 9, 20]),
    sinks=st.sampled_from([0, 0, 4]),
).filter(lambda one: one.window is not None or not one.sinks)


_visits = jax.jit(list_visits, static_argnums=1, static_argnames="most")


def i32(*values):
    return jnp.array(values, jnp.int32)


def blocks_seen(columns, newest, lowest):
    """Which blocks of a ring hold what queries from `lowest` on see."""
    index = jnp.arange(columns.length, dtype=jnp.int32)
    held = np.asarray(attention.ring_positions(i32(newest), index, columns.length, columns.sinks))
    near = True if columns.window is None else held > lowest - columns.window
    seen = (held >= 0) & (near | (held < columns.sinks))
    return sorted({int(column) // columns.block for column in np.nonzero(seen[0])[0]})


@given(columns=COLUMNS, newest=st.integers(-1, 100), ahead=st.integers(0, 30))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_every_block_in_view_is_visited_once_and_no_other(columns, newest, ahead):
    """Of rings with sinks all that hold anything are: hardly a column is out of view there."""
    lowest = newest + ahead
    first, count = (int(one[0]) for one in ring_span(columns, i32(newest), i32(lowest)))
    visited = sorted((first + n) % columns.blocks for n in range(count))
    if columns.sinks:
        assert set(visited) >= set(blocks_seen(columns, newest, lowest))
        lowest = newest - columns.length
        columns = Columns(columns.length, columns.block, None, columns.sinks)
    assert visited == blocks_seen(columns, newest, lowest)


@given(
    columns=COLUMNS,
    start=st.integers(0, 40),
    part=st.integers(0, 3),
    length=st.integers(1, 32),
)
@settings(derandomize=True, deadline=None, max_examples=100)
def test_the_chunks_own_blocks_are_those_some_query_sees(columns, start, part, length):
    """A chunk of 4 parts of 8 tokens, read by 4; nobody looks past its own position."""
    lowest = start + 8 * part
    queries = range(lowest, min(lowest + 8, start + length))
    beyond = i32(max(queries, default=start - 1) + 1)
    first, count = own_span(columns, i32(start), i32(lowest), beyond, 4)
    visited = range(int(first[0]), int(first[0]) + int(count[0]))
    seen = {
        (position - start) // 4
        for query in queries
        for position in range(start, query + 1)
        if columns.window is None or position > query - columns.window or columns.sinks
    }
    if queries:
        assert sorted(seen) == list(visited)


@given(columns=COLUMNS, newest=st.integers(-1, 100))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_a_column_holds_what_attention_says(columns, newest):
    index = jnp.arange(columns.length, dtype=jnp.int32)
    expected = attention.ring_positions(i32(newest), index, columns.length, columns.sinks)[0]
    found = held_position(columns, i32(newest)[0], index)
    if newest < columns.sinks:  # nothing but sinks is there
        expected, found = (np.where(one >= columns.sinks, -1, one) for one in (expected, found))
    np.testing.assert_array_equal(np.maximum(found, -1), np.maximum(expected, -1))


def test_rows_come_one_after_the_other_and_idle_ones_not_at_all():
    """Rows of slots 2, 0, 1 in two parts; the chunk's visits leave the ring where it is."""
    columns = Columns(16, 4)
    ring = (i32(3, 0, 0, 0, 1, 1).reshape(3, 2), i32(2, 0, 0, 0, 1, 2).reshape(3, 2))
    own = (i32(0, 0, 0, 0, 0, 1).reshape(3, 2), i32(1, 0, 0, 0, 0, 2).reshape(3, 2))
    visits = _visits(i32(2, 0, 1), columns, ring, own, most=6)
    total = int(visits.total)
    assert total == 8
    assert visits.who.tolist() == [0, 0, 0, 4, 5, 5, 5, 5] + [-1] * (36 - 8 + 1)
    slot, block = np.divmod(np.asarray(visits.ring)[:total], columns.blocks)
    assert list(zip(slot, block, strict=True)) == [
        (2, 3), (2, 0), (2, 0), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2)
    ]  # fmt: skip
    assert visits.own.tolist()[:total] == [-1, -1, 0, -1, -1, -1, 1, 2]


def test_where_all_rows_are_idle_there_is_one_visit_of_nobody():
    columns, none = Columns(16, 4), i32(0, 0).reshape(2, 1)
    visits = _visits(i32(0, 1), columns, (none, none), most=4)
    assert int(visits.total) == 1
    assert visits.ring.tolist()[0] == 0
    assert set(visits.who.tolist()) == {-1}
