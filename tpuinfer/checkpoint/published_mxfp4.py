"""MXFP4 experts: `X_blocks` [E, R, C/32, 16] and `X_scales` [E, R, C/32]; X is [E, C, R].

A byte holds two E2M1 values, the first in the low half; scales are powers of two (OCP Microscaling
Formats specification, version 1.0).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint.coded import Made, MisfitError, Slab, Stored
from tpuinfer.checkpoint.safetensors import StoredTensor
from tpuinfer.errors import CheckpointError
from tpuinfer.quant.schemes import Scheme

_NAN_SCALE = 255
_SCALE_BIAS = 127

_TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the values of the sixteen codes, which are a sign, two bits of exponent, one of mantissa:
integers, so that int8 codes with half the scale are the same values."""


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

    @property
    def scheme(self) -> Scheme:
        """Ours for a parameter [E, R, C], which holds the same values."""
        return Scheme("int8", 32)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Values of experts [start:stop], [stop - start, C, R].

        Raises:
          CheckpointError: a scale is not a number.
        """
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for expert in range(start, stop):
            slab = self.slab(expert, slice(None))
            values = slab.codes.astype(np.float32).reshape(*slab.scale.shape, -1)
            values *= slab.scale[..., None]
            out[expert - start] = values.reshape(slab.codes.shape).T
        return out

    def slab(self, expert: int, rows: slice) -> Slab:
        """Rows of one expert, codes [r, C] int8 and scale [r, C/32].

        Raises:
          CheckpointError: a scale is not a number.
        """
        packed = self.blocks.rows(expert, expert + 1)[0, rows]
        exponents = self.scales.rows(expert, expert + 1)[0, rows]
        if (exponents == _NAN_SCALE).any():
            raise CheckpointError(
                f"{self.scales.path}: tensor {self.scales.name} holds a scale that is not a "
                f"number, of expert {expert}"
            )
        codes = np.empty((*packed.shape, 2), np.int8)
        codes[..., 0] = _TWICE[packed & 15]
        codes[..., 1] = _TWICE[packed >> 4]
        scale = np.ldexp(np.float32(0.5), exponents.astype(np.int32) - _SCALE_BIAS)
        return Slab(codes.reshape(len(codes), -1), scale)


def refusal(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read: there is one form."""
    return None


def made(name: str, stored: Stored) -> Made | None:
    """The experts that a stored tensor holds the codes of; None = it is another kind of tensor.

    Raises:
      MisfitError: their scales are missing or do not fit.
    """
    if not name.endswith("_blocks"):
        return None
    base, blocks = name.removesuffix("_blocks"), stored.tensors[name]
    scales = stored.need(f"{base}_scales", f"{name} holds MXFP4 blocks")
    fits = len(blocks.shape) == 4 and blocks.shape == (*scales.shape, 16)
    if not fits or {blocks.dtype, scales.dtype} != {np.dtype(np.uint8)}:
        raise MisfitError(
            f"{blocks.name} {list(blocks.shape)} and {scales.name} {list(scales.shape)} are no "
            "MXFP4 blocks [E, R, C/32, 16] and scales [E, R, C/32]"
        )
    return Made(base, Microscaled(blocks, scales, stored.dtype), (name, f"{base}_scales"))
