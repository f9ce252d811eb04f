"""Prompts are cut by their length alone, into what is compiled."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.errors import ConfigError
from tpuinfer.programs.buckets import Chunk, cut, default_buckets


@pytest.mark.parametrize(
    ("length", "chunks"),
    [
        (1, [(0, 1, 2)]),
        (2, [(0, 2, 2)]),
        (3, [(0, 3, 4)]),
        (5, [(0, 5, 8)]),
        (8, [(0, 8, 8)]),
        (9, [(0, 8, 8), (8, 1, 2)]),
        (16, [(0, 8, 8), (8, 8, 8)]),
        (20, [(0, 8, 8), (8, 8, 8), (16, 4, 4)]),
    ],
)
def test_cut_by_hand(length: int, chunks: list[tuple[int, int, int]]) -> None:
    assert cut(length, 8, (2, 4, 8)) == tuple(Chunk(*one) for one in chunks)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(length=st.integers(1, 3000), chunk=st.integers(1, 300), smallest=st.integers(1, 64))
def test_chunks_cover_the_prompt_and_only_the_tail_is_short(
    length: int, chunk: int, smallest: int
) -> None:
    buckets = default_buckets(chunk, smallest)
    *full, tail = cut(length, chunk, buckets)
    assert [one.start for one in (*full, tail)] == list(range(0, length, chunk))
    assert all((one.size, one.bucket) == (chunk, chunk) for one in full)
    assert tail.start + tail.size == length
    assert tail.bucket == min(width for width in buckets if width >= tail.size)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 600), min_size=2, max_size=8), chunk=st.integers(1, 100))
def test_prompts_of_any_length_share_their_full_chunks(lengths: list[int], chunk: int) -> None:
    """A longer prompt goes on where a shorter one had its tail, whatever was cut in between."""
    buckets = default_buckets(chunk, max(1, chunk // 4))
    first = [cut(length, chunk, buckets) for length in lengths]
    longest = max(first, key=len)
    for chunks in first:
        assert chunks[:-1] == longest[: len(chunks) - 1]
    again = [cut(length, chunk, buckets) for length in reversed(lengths)]
    assert again[::-1] == first


def test_nothing_else_can_enter() -> None:
    """No load, no slot, no request: a prompt's length and what is compiled."""
    assert [*inspect.signature(cut).parameters] == ["length", "chunk", "buckets"]


@pytest.mark.parametrize(
    ("chunk", "smallest", "buckets"),
    [
        (256, 32, (32, 64, 128, 256)),
        (100, 32, (32, 64, 100)),
        (32, 32, (32,)),
        (16, 32, (16,)),
        (8, 1, (1, 2, 4, 8)),
    ],
)
def test_default_buckets_by_hand(chunk: int, smallest: int, buckets: tuple[int, ...]) -> None:
    assert default_buckets(chunk, smallest) == buckets


def test_misuse() -> None:
    with pytest.raises(AssertionError, match="0 tokens"):
        cut(0, 8, (8,))
    with pytest.raises(AssertionError, match="not chunk 8"):
        cut(3, 8, (2, 4))
    with pytest.raises(ConfigError, match="chunk is 0: it must be at least 1"):
        default_buckets(0)
    with pytest.raises(ConfigError, match="smallest bucket is -1"):
        default_buckets(8, -1)
