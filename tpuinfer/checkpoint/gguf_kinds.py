"""A GGUF file's quantised tensors as our schemes keep them.

Where ggml's blocks are ranges in equal steps, codes, scales and zeros are taken from the file as
they stand there (`ggml_common.h` and `dequantize_row_*` of ggml-quants.c say where):

    Q8_0  Q5_0   value = d * code                          32 to a block
    Q4_0         value = d * (nibble - 8)                  32
    Q4_1         value = d * nibble + m                    32
    Q4_K         value = d * s * nibble - dmin * m         32, eight blocks to a d and dmin
    Q6_K         value = d * s * code                      16, sixteen blocks to a d

So they stand for what the file's did, to the last bit but for the float32 rounding of a zero. Of
the other kinds codes of the nearest scheme are fitted to the values, which rounds a second time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import assemble
from tpuinfer.checkpoint.gguf_tensor import TYPES, GgufTensor
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.models.blueprint import Weight
from tpuinfer.models.names import Names, Part
from tpuinfer.quant.qarray import QArray
from tpuinfer.quant.schemes import Scheme

_NEAREST = {
    "Q4_0": "int4:32",
    "Q4_1": "int4z:32",
    "Q4_K": "int4z:32",
    "IQ4_NL": "int4z:32",
    "IQ4_XS": "int4z:32",
    "Q2_K": "int4z:16",
    "Q3_K": "int4z:16",
    "Q5_0": "int8:32",
    "Q5_1": "int8:32",
    "Q5_K": "int8:32",
    "Q6_K": "int8:16",
    "Q8_0": "int8:32",
    "MXFP4": "int8:32",
}
"""ggml's name of a type -> scheme; those that are not here are dequantised."""

_PIECE = 2**22
"""About how many elements are taken apart at a time."""


def nearest(
    tensors: Mapping[str, GgufTensor], names: Names, weights: Mapping[str, Weight]
) -> dict[str, Scheme]:
    """The scheme of each parameter all of whose tensors are of one such kind."""
    found = {}
    for name, weight in weights.items():
        kinds = {_kind(tensors, part) for part in names[name]}
        scheme = _NEAREST.get(kinds.pop()) if len(kinds) == 1 else None
        if scheme is None or not weight.contracted:
            continue
        try:
            found[name] = Scheme.parse(scheme).fitted(_width(weight))
        except ConfigError:
            continue
    return found


def read(
    tensors: Mapping[str, GgufTensor], parts: Sequence[Part], weight: Weight, scheme: Scheme
) -> QArray:
    """A parameter by the scheme that `nearest` names, of arrays in host memory.

    Raises:
      CheckpointError: the file shrank or cannot be read, or a value is not finite.
    """
    kind = _kind(tensors, parts[0])
    decode = _CODES.get(kind)
    by_rows = not any(part.swap or part.axis or part.add for part in parts)
    if decode is None or not by_rows or scheme != Scheme.parse(_NEAREST[kind]):
        from tpuinfer.checkpoint import quantised

        values = assemble.read_param(tensors, parts, weight.shape, np.dtype(np.float32))
        return quantised.on_host(values, scheme, weight.contracted)
    group = scheme.group
    assert group is not None, scheme
    lead = weight.shape[: -weight.contracted]
    width = _width(weight)

    def read_field(field: str, inner: int) -> NDArray[Any]:
        views = {part.tensor: _Field(tensors[part.tensor], field, decode, inner) for part in parts}
        fitting = [replace(part, shape=views[part.tensor].shape) for part in parts]
        dtype = next(iter(views.values())).dtype
        return assemble.read_param(views, fitting, (*lead, inner), dtype)

    codes = read_field("codes", width).reshape(*lead, width // group, group)
    scale = read_field("scale", width // group)
    zero = read_field("zero", width // group) if scheme.has_zero else None
    return QArray(codes, scale, zero, scheme.kind, True)  # type: ignore[arg-type]


def _width(weight: Weight) -> int:
    return math.prod(weight.shape[-weight.contracted :])


def _kind(tensors: Mapping[str, GgufTensor], part: Part) -> str:
    return TYPES[tensors[part.tensor].type_id].name


class _Blocks(NamedTuple):
    """What blocks hold, n groups to each: codes [n, S] int8, scale [n], zero [n] float32."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class _Field:
    """One field of a tensor's blocks, as a tensor that is read piece by piece.

    Attributes:
      width: how many of it a row has.
    """

    tensor: GgufTensor
    field: str
    decode: Callable[[NDArray[np.uint8]], _Blocks]
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.tensor.shape[:-1], self.width)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int8 if self.field == "codes" else np.float32)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] of the first dimension."""
        inner = math.prod(self.tensor.shape[1:])
        step = max(1, _PIECE // inner)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for at in range(start, stop, step):
            end = min(at + step, stop)
            blocks = self.decode(self.tensor.blocks(at, end))
            numbers = (blocks.scale,) if blocks.zero is None else (blocks.scale, blocks.zero)
            if not all(np.isfinite(one).all() for one in numbers):
                kind = TYPES[self.tensor.type_id].name
                raise CheckpointError(
                    f"{self.tensor.path}: tensor {self.tensor.name} ({kind}) holds values that are "
                    "not finite"
                )
            piece = out[at - start : end - start]
            piece[...] = getattr(blocks, self.field).reshape(piece.shape)
        return out


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float32]:
    """The half-precision number at a byte of each block, [n]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0].astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """[n, S / 2] bytes -> [n, S]: the low halves of all, then the high halves."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1).astype(np.int8)


def _q8_0(blocks: NDArray[np.uint8]) -> _Blocks:
    return _Blocks(blocks[:, 2:].view(np.int8), _half(blocks, 0))


def _q4_0(blocks: NDArray[np.uint8]) -> _Blocks:
    return _Blocks(_nibbles(blocks[:, 2:]) - np.int8(8), _half(blocks, 0))


def _q4_1(blocks: NDArray[np.uint8]) -> _Blocks:
    scale = _half(blocks, 0)
    return _Blocks(_nibbles(blocks[:, 4:]) - np.int8(8), scale, _half(blocks, 2) + 8 * scale)


def _q5_0(blocks: NDArray[np.uint8]) -> _Blocks:
    fifth = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little").astype(np.int8)
    return _Blocks((_nibbles(blocks[:, 6:]) | fifth << 4) - np.int8(16), _half(blocks, 0))


def _q4_k(blocks: NDArray[np.uint8]) -> _Blocks:
    """Six bits each of eight scales and eight minima lie in twelve bytes.

    bytes 0-3    scales 0-3, above them the high bits of scales 4-7
    bytes 4-7    minima 0-3, above them the high bits of minima 4-7
    bytes 8-11   the low four bits of scales 4-7, above them those of minima 4-7
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)
    scale = _half(blocks, 0)[:, None] * scales.astype(np.float32)
    least = _half(blocks, 2)[:, None] * minima.astype(np.float32)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32)) - np.int8(8)
    return _Blocks(codes.reshape(-1, 32), scale.ravel(), (8 * scale - least).ravel())


def _q6_k(blocks: NDArray[np.uint8]) -> _Blocks:
    """Low four bits in 128 bytes, high two in 64; 64 low and 32 high bytes are 128 codes.

    low     byte i: codes i and 64 + i        i < 64
    high    byte i: codes i, 32 + i, 64 + i, 96 + i      i < 32
    """
    low = _nibbles(blocks[:, :128].reshape(-1, 64))
    high = blocks[:, 128:192].reshape(-1, 32)
    two = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).astype(np.int8)
    codes = (low | two << 4) - np.int8(32)
    scale = _half(blocks, 208)[:, None] * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _Blocks(codes.reshape(-1, 16), scale.ravel())


_CODES: dict[str, Callable[[NDArray[np.uint8]], _Blocks]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_0": _q5_0,
    "Q6_K": _q6_k,
    "Q8_0": _q8_0,
}
"""How the blocks of a kind are taken apart: [n, bytes] -> their groups."""
