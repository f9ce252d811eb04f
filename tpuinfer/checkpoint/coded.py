"""A matrix that a checkpoint keeps as codes and scales, by whichever method, read row by row.

    value[n, k] = (code[n, k] - zero[n, g]) * scale[n, g]      g = k // wide, or as `order` says

What the methods differ in, where codes and scales lie, is a function from rows to a `Slab`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint.safetensors import StoredTensor
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.quant.schemes import Scheme


class Tensor(Protocol):
    """A published tensor that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] of the first dimension."""
        ...


class MisfitError(Exception):
    """Why tensors of a module are no quantised weight, in words that name them."""


@dataclass(frozen=True)
class Slab:
    """Some rows of a matrix [N, K].

    Attributes:
      codes: [n, K] int8 or float8.
      scale: [n, G] float32.
      zero: [n, G] int16, the code of the value 0; None = 0.
    """

    codes: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class Coded:
    """A matrix [N, K] that is kept as codes.

    Attributes:
      name: of the weight, for what is refused.
      dtype: what values are rounded to, once.
      read: rows [start:stop] as they are kept.
      wide: columns that share a scale; K = all of a row.
      scheme: the nearest of ours; None = there is none.
      exact: that scheme holds the same values, if `order` does not say otherwise.
      order: [K], the group of each column; None = column k is in group k // wide.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    read: Callable[[int, int], Slab]
    wide: int
    scheme: Scheme | None
    exact: bool
    order: StoredTensor | None = None

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Values [stop - start, K]."""
        slab = self.read(start, stop)
        values = slab.codes.astype(np.float32)
        groups = self.groups()
        if self.shape[1] % self.wide == 0 and np.array_equal(groups, self._neighbours()):
            cut = values.reshape(*slab.scale.shape, self.wide)  # the same, several times as fast
            if slab.zero is not None:
                cut -= slab.zero[..., None]
            cut *= slab.scale[..., None]
        else:
            if slab.zero is not None:
                values -= slab.zero[:, groups]
            values *= slab.scale[:, groups]
        return values.astype(self.dtype)

    def _neighbours(self) -> NDArray[np.intp]:
        return np.arange(self.shape[1]) // self.wide

    def groups(self) -> NDArray[np.intp]:
        """[K]: which scale of its row each column has.

        Raises:
          CheckpointError: there is no such scale.
        """
        width = self.shape[1]
        if self.order is None:
            return self._neighbours()
        stored = self.order.rows(0, width).astype(np.intp)
        if (stored == -1).all():  # what compressed-tensors writes for "no order"
            return self._neighbours()
        count = -(-width // self.wide)
        if stored.min() < 0 or stored.max() >= count:
            raise CheckpointError(
                f"{self.order.path}: {self.order.name} names group {int(stored.max())} or "
                f"{int(stored.min())}, and {self.name} has groups 0 to {count - 1}"
            )
        return stored

    def is_exact(self) -> bool:
        """Whether its scheme holds the same values; reads no more than `order`."""
        in_order = self.order is None or np.array_equal(self.groups(), self._neighbours())
        return self.exact and in_order


def nearest(word: str, wide: int, width: int) -> Scheme | None:
    """The scheme of a word for rows of `width` columns, `wide` of which share a scale.

    4-bit codes always have groups here, and two groups may have the same scale.

    >>> str(nearest("int4", 4096, 4096)), str(nearest("fp8", 128, 576)), str(nearest("int8", 9, 9))
    ('int4:128', 'fp8:64', 'int8')
    """
    four = word.startswith("int4")
    try:
        if wide >= width:
            return Scheme(word, 128).fitted(width) if four else Scheme(word)
        return Scheme("int8" if word == "w8a8" else word, wide).fitted(width)
    except ConfigError:
        return None


def divides(scheme: Scheme | None, wide: int, width: int) -> bool:
    """Whether each group of a scheme lies within one of `wide` columns."""
    if scheme is None:
        return False
    if scheme.group is None or wide >= width:
        return wide >= width
    return wide % scheme.group == 0


@dataclass(frozen=True)
class Grid:
    """Factors [ceil(N / high), G] of the rows of a matrix [N, ...], `high` of which share them."""

    stored: StoredTensor
    high: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Factors [stop - start, G] of rows [start:stop]."""
        first, last = start // self.high, -(-stop // self.high)
        found = self.stored.rows(first, last).reshape(last - first, -1)
        return found[np.arange(start, stop) // self.high - first]

    def scale(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.rows(start, stop).astype(np.float32)


def grid(
    stored: StoredTensor, name: str, shape: tuple[int, int], block: tuple[int, int], kinds: str
) -> Grid:
    """Factors of a matrix, one for each block.

    Args:
      name: of the matrix. kinds: numpy's letters of the types that they may have.

    Raises:
      MisfitError: their shape or type does not fit.
    """
    wanted = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
    shapes = [wanted]
    if wanted[1] == 1:
        shapes.append(wanted[:1])
    if wanted == (1, 1):
        shapes.append(())
    if stored.shape not in shapes or stored.dtype.kind not in kinds:
        raise MisfitError(
            f"{stored.name} {stored.dtype} {list(stored.shape)} does not fit {name} {list(shape)} "
            f"in blocks of {list(block)}: it must be {list(wanted)}"
        )
    return Grid(stored, block[0])


def unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """[..., W] -> [..., W * 32 / bits]: the codes of 4 or 8 bits in each word, the lowest first.

    >>> [int(code) for code in unpack(np.array([0x76543210], np.int32), 4)]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    parts = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return parts
    both = np.stack((parts & 15, parts >> 4), axis=-1)
    return both.reshape(*parts.shape[:-1], -1)


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Codes from 0 as codes around 0: 0 becomes -8, or -128."""
    return (codes - np.uint8(1 << (bits - 1))).view(np.int8)


class Held:
    """The tensors of the module that was read last, whole.

    Where a matrix lies with its inputs before its outputs, each row of ours is in every row of the
    file: what is read once is kept until another module is wanted.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[StoredTensor, ...], tuple[NDArray[Any], ...]] | None = None

    def read(self, tensors: tuple[StoredTensor, ...]) -> tuple[NDArray[Any], ...]:
        """All of each tensor."""
        last = self._last
        if last is None or last[0] is not tensors:
            self._last = last = None  # two modules are never held at once
            last = tensors, tuple(one.rows(0, one.shape[0]) for one in tensors)
            self._last = last
        return last[1]


@dataclass(frozen=True)
class Stored:
    """What the tensors of a checkpoint are understood by.

    Attributes:
      tensors: by name, the first part of which wrapped models lack (`StoredTensor.name` has it).
      found: config.json's quantization_config.
      dtype: of dequantised values.
    """

    tensors: dict[str, StoredTensor]
    found: dict[str, Any]
    dtype: np.dtype[Any]
    held: Held

    def need(self, name: str, what: str) -> StoredTensor:
        """A tensor that another one needs.

        Raises:
          MisfitError: it is missing.
        """
        if (tensor := self.tensors.get(name)) is None:
            raise MisfitError(f"{what}, which needs {name}")
        return tensor


@dataclass(frozen=True)
class Made:
    """A tensor out of several stored ones.

    Attributes:
      name: what the model calls it. used: names of all that it is made of.
    """

    name: str
    tensor: Tensor
    used: tuple[str, ...]
