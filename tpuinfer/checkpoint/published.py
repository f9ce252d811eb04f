"""Tensors as a checkpoint means them: block-scaled FP8 and MXFP4 come back as plain values.

FP8: `X.weight` in float8_e4m3 and `X.weight_scale_inv`, one factor for each block of rows and
columns (as DeepSeek-V3 publishes, arXiv:2412.19437).
MXFP4: `X_blocks` [E, R, C/32, 16], two E2M1 values a byte, the first in the low half, and
`X_scales` [E, R, C/32], powers of two (OCP Microscaling Formats specification, version 1.0); X is
[E, C, R].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint.safetensors import StoredTensor
from tpuinfer.errors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_SCALE_OF_FP8 = "_scale_inv"
_FP8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
_NAN_SCALE = 255
_SCALE_BIAS = 127

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of the sixteen codes: a sign, two bits of exponent, one of mantissa."""


class Tensor(Protocol):
    """A published tensor that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] of the first dimension."""
        ...


@dataclass(frozen=True)
class BlockScaled:
    """An FP8 matrix [N, K] with a factor for each block of it.

    Attributes:
      scales: [ceil(N / block[0]), ceil(K / block[1])].
      dtype: what values are rounded to, once.
    """

    weight: Tensor
    scales: Tensor
    block: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Values [stop - start, K]."""
        high, wide = self.block
        first = start // high
        scales = self.scales.rows(first, -(-stop // high)).astype(np.float32)
        by_row = scales[np.arange(start, stop) // high - first]
        factors = np.repeat(by_row, wide, axis=1)[:, : self.shape[1]]
        values = self.weight.rows(start, stop).astype(np.float32)
        np.multiply(values, factors, out=values)
        return values.astype(self.dtype)


@dataclass(frozen=True)
class Microscaled:
    """MXFP4 values [E, C, R], of blocks [E, R, C/32, 16] and scales [E, R, C/32]."""

    blocks: StoredTensor
    scales: StoredTensor
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, groups, size = self.blocks.shape
        return experts, 2 * groups * size, rows

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Values of experts [start:stop], [stop - start, C, R].

        Raises:
          CheckpointError: a scale is not a number.
        """
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for expert in range(start, stop):
            codes = self.blocks.rows(expert, expert + 1)[0]
            scales = self.scales.rows(expert, expert + 1)[0]
            if (scales == _NAN_SCALE).any():
                raise CheckpointError(
                    f"{self.scales.path}: tensor {self.scales.name} holds a scale that is not a "
                    f"number, of expert {expert}"
                )
            values = np.empty((*codes.shape[:-1], codes.shape[-1], 2), np.float32)
            values[..., 0] = _E2M1[codes & 15]
            values[..., 1] = _E2M1[codes >> 4]
            exponents = scales.astype(np.int32) - _SCALE_BIAS
            np.ldexp(values, exponents[..., None, None], out=values)
            out[expert - start] = values.reshape(codes.shape[0], -1).T
        return out


def check_method(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse, from config.json alone, a checkpoint quantised in a way that is not read.

    Raises:
      CheckpointError: names the method and those that are read.
    """
    found = config.get("quantization_config", config.get("compression_config"))
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else found
    if method == "mxfp4" or (method == "fp8" and _block(found) is not None):
        return
    what = "fp8 without weight_block_size" if method == "fp8" else repr(method)
    raise CheckpointError(
        f"{path}: config.json says the weights are quantised by {what}; read are fp8 with "
        "weight_block_size, mxfp4, and weights that are not quantised"
    )


def logical(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, Tensor]:
    """The tensors that a checkpoint means, by name, those stored in parts put together.

    Raises:
      CheckpointError: scales are missing or do not fit their values.
    """
    found = config.get("quantization_config") or {}
    stated = config.get("dtype", config.get("torch_dtype"))
    dtype = np.dtype(np.float32) if stated == "float32" else BFLOAT16
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in tensors:
            base = name.removesuffix("_blocks")
            out[base] = _microscaled(tensor, tensors[f"{base}_scales"], dtype)
        elif tensor.dtype in _FP8:
            out[name] = _block_scaled(tensor, tensors.get(name + _SCALE_OF_FP8), found, dtype)
        elif not _is_scale(name, tensors):
            out[name] = tensor
    return out


def _is_scale(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a tensor is what another one is scaled by."""
    if name.endswith("_scales"):
        return f"{name.removesuffix('_scales')}_blocks" in tensors
    scaled = tensors.get(name.removesuffix(_SCALE_OF_FP8))
    return name.endswith(_SCALE_OF_FP8) and scaled is not None and scaled.dtype in _FP8


def _microscaled(blocks: StoredTensor, scales: StoredTensor, dtype: np.dtype[Any]) -> Microscaled:
    fits = len(blocks.shape) == 4 and blocks.shape == (*scales.shape, 16)
    if not fits or {blocks.dtype, scales.dtype} != {np.dtype(np.uint8)}:
        raise CheckpointError(
            f"{blocks.path}: {blocks.name} {list(blocks.shape)} and {scales.name} "
            f"{list(scales.shape)} are no MXFP4 blocks [E, R, C/32, 16] and scales [E, R, C/32]"
        )
    return Microscaled(blocks, scales, dtype)


def _block_scaled(
    weight: StoredTensor, scales: StoredTensor | None, found: Any, dtype: np.dtype[Any]
) -> BlockScaled:
    block = _block(found)
    if scales is None or block is None:
        raise CheckpointError(
            f"{weight.path}: {weight.name} is FP8, which needs {weight.name}{_SCALE_OF_FP8} and "
            "weight_block_size in config.json's quantization_config"
        )
    wanted = tuple(_ceil_divided(weight.shape, block))
    if len(weight.shape) != 2 or scales.shape != wanted or scales.dtype.kind not in "fV":
        raise CheckpointError(
            f"{weight.path}: {scales.name} {list(scales.shape)} does not fit {weight.name} "
            f"{list(weight.shape)} in blocks of {list(block)}: it must be {list(wanted)}"
        )
    return BlockScaled(weight, scales, block, dtype)


def _ceil_divided(shape: tuple[int, ...], block: tuple[int, int]) -> Iterator[int]:
    return (-(-size // part) for size, part in zip(shape, block, strict=False))


def _block(found: Any) -> tuple[int, int] | None:
    """weight_block_size, where it is two sizes."""
    sizes = found.get("weight_block_size") if isinstance(found, dict) else None
    if not isinstance(sizes, list) or len(sizes) != 2:
        return None
    high, wide = sizes
    return (high, wide) if type(high) is type(wide) is int and min(sizes) > 0 else None
