"""Tensors of a GGUF file, read in pieces and dequantised to float32.

The `gguf` package, which llama.cpp's authors publish, does the arithmetic of every block type.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpuinfer.errors import CheckpointError

_BLOCK_BYTES = 2**24
"""About how much is dequantised at a time, as float32."""


class BlockType(NamedTuple):
    """How ggml stores a row: `size` bytes for every `block` elements."""

    name: str
    block: int
    size: int


TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}
"""ggml type id -> layout, of every type that can be dequantised here."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place in a file; nothing of it is read until it is asked for.

    Attributes:
      shape: row-major, as numpy has it; ggml lists it the other way round.
      type_id: ggml's number for the element type; a key of TYPES.
      offset: of its first byte, from the beginning of the file.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `rows` returns."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        kind = TYPES[self.type_id]
        return math.prod(self.shape) // kind.block * kind.size

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] of the first dimension, [stop - start, ...] float32.

        Raises:
          CheckpointError: the file shrank or cannot be read, or a value is not finite.
        """
        kind = TYPES[self.type_id]
        inner = math.prod(self.shape[1:])
        begin, end = start * inner, stop * inner
        first, last = begin // kind.block, -(-end // kind.block)
        out = np.empty((last - first, kind.block), np.float32)
        step = max(1, _BLOCK_BYTES // (4 * kind.block))
        with reading(self.path) as file:
            file.seek(self.offset + first * kind.size)
            for at in range(0, len(out), step):
                piece = out[at : at + step]
                piece[...] = self._dequantised(file, len(piece)).reshape(piece.shape)
        skipped = first * kind.block
        wanted = out.reshape(-1)[begin - skipped : end - skipped]
        return wanted.reshape(stop - start, *self.shape[1:])

    def blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Elements [start:stop] of the first dimension as they are stored, [n, bytes of a block].

        Raises:
          CheckpointError: the file shrank or cannot be read.
        """
        kind = TYPES[self.type_id]
        inner = math.prod(self.shape[1:]) // kind.block
        with reading(self.path) as file:
            file.seek(self.offset + start * inner * kind.size)
            return self._stored(file, (stop - start) * inner)

    def _stored(self, file: BinaryIO, count: int) -> NDArray[np.uint8]:
        """The next `count` blocks of the file, [count, bytes of a block]."""
        size = TYPES[self.type_id].size
        data = file.read(count * size)
        if len(data) != count * size:
            raise CheckpointError(f"{self.path}: the file ends inside tensor {self.name}")
        return np.frombuffer(data, np.uint8).reshape(count, size)

    def _dequantised(self, file: BinaryIO, count: int) -> NDArray[Any]:
        """The next `count` blocks of the file."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = TYPES[self.type_id]
        stored = self._stored(file, count).reshape(1, -1)
        with np.errstate(all="ignore"):
            values: NDArray[Any] = dequantize(stored, GGMLQuantizationType(self.type_id))
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.path}: tensor {self.name} ({kind.name}) holds values that are not finite"
            )
        return values


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; failures to read it become CheckpointError."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
