"""How a prompt is cut into fixed-shape pieces, by its length alone. Pure Python.

A prompt that is cut the same way whatever else is running, and whatever is already cached, gives
the same bits.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from tpuinfer.errors import ConfigError


class Chunk(NamedTuple):
    """Tokens [start, start + size) of a prompt, run at the padded width `bucket` >= size."""

    start: int
    size: int
    bucket: int


def cut(length: int, chunk: int, buckets: Sequence[int]) -> tuple[Chunk, ...]:
    """Full chunks, then one tail at the smallest bucket that holds it.

    cut(20, 8, (2, 4, 8)):

        tokens   0........7  8.......15  16..19
        chunk    [ 0, 8 @8 ] [ 8, 8 @8 ] [16, 4 @4]

    Args:
      length: tokens of the prompt, >= 1.
      chunk: size of a full chunk.
      buckets: widths that are compiled, ascending; the last is `chunk`.
    """
    assert length >= 1, f"a prompt of {length} tokens"
    assert buckets[-1] == chunk, f"the last of buckets {tuple(buckets)} is not chunk {chunk}"
    tail_start = (length - 1) // chunk * chunk
    tail = length - tail_start
    full = [Chunk(start, chunk, chunk) for start in range(0, tail_start, chunk)]
    return (*full, Chunk(tail_start, tail, buckets[bisect_left(buckets, tail)]))


def default_buckets(chunk: int, smallest: int = 32) -> tuple[int, ...]:
    """`smallest` doubled for as long as it is below `chunk`, then `chunk`.

    default_buckets(256) == (32, 64, 128, 256); default_buckets(100) == (32, 64, 100).

    Raises:
      ConfigError: either is below 1.
    """
    for name, value in (("chunk", chunk), ("smallest bucket", smallest)):
        if value < 1:
            raise ConfigError(f"prefill {name} is {value}: it must be at least 1; nearest: 1")
    widths = []
    while smallest < chunk:
        widths.append(smallest)
        smallest *= 2
    return (*widths, chunk)
