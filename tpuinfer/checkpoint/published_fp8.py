"""FP8 weights: `X.weight` in float8, and what it is scaled by.

    X.weight_scale_inv [ceil(N/h), ceil(K/w)]    weight_block_size [h, w] (DeepSeek-V3,
                                                 arXiv:2412.19437)
    X.weight_scale_inv, X.weight_scale  [], [1]  one for the matrix (Mistral's; AutoFP8's)
    X.weight_scale [N, 1], [N]                   one for each row (compressed-tensors)

All of them multiply, "inv" or not.
"""

import functools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tpuinfer.checkpoint.coded import (
    Coded,
    Grid,
    Made,
    MisfitError,
    Slab,
    Stored,
    divides,
    grid,
    nearest,
)
from tpuinfer.checkpoint.safetensors import StoredTensor

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
TYPES = (E4M3, np.dtype(ml_dtypes.float8_e5m2))

_SCALES = ("_scale_inv", "_scale")


def refusal(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read; None = it is."""
    if found.get("weight_block_size") is not None and block_of(found) is None:
        return f"fp8 with weight_block_size {str(found['weight_block_size'])[:40]}"
    if found.get("expert_dtype", "fp8") != "fp8":
        return f"fp8 with experts in {str(found['expert_dtype'])[:40]!r}"
    return None


def made(name: str, stored: Stored) -> Made | None:
    """The weight that a stored tensor holds the codes of; None = it is another kind of tensor.

    Raises:
      MisfitError: its scales are missing or do not fit.
    """
    weight = stored.tensors[name]
    return scaled(name, stored, block_of(stored.found)) if weight.dtype in TYPES else None


def scaled(name: str, stored: Stored, block: tuple[int, int] | None) -> Made:
    """A matrix in float8 with its scales.

    Args:
      block: that share a scale; None = the shape of the scales says which.

    Raises:
      MisfitError: they are missing or do not fit.
    """
    weight = stored.tensors[name]
    found = [name + end for end in _SCALES if name + end in stored.tensors]
    if not found:
        wanted = " or ".join(name + end for end in _SCALES)
        raise MisfitError(f"{name} is FP8, which needs {wanted}")
    scales = stored.tensors[found[0]]
    shape = _matrix(name, weight)
    block = block or _block_by_shape(name, shape, scales)
    by_rows = grid(scales, name, shape, block, "fV")
    wide = block[1]
    scheme = nearest("fp8", wide, shape[1])
    exact = weight.dtype == E4M3 and divides(scheme, wide, shape[1])
    read = functools.partial(_read, weight, by_rows)
    coded = Coded(name, shape, stored.dtype, read, wide, scheme, exact)
    return Made(name, coded, (name, found[0]))


def block_of(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """weight_block_size, where it is two sizes."""
    sizes = found.get("weight_block_size")
    if not isinstance(sizes, list) or len(sizes) != 2:
        return None
    high, wide = sizes
    return (high, wide) if type(high) is type(wide) is int and min(sizes) > 0 else None


def _read(weight: StoredTensor, scales: Grid, start: int, stop: int) -> Slab:
    return Slab(weight.rows(start, stop), scales.scale(start, stop))


def _matrix(name: str, weight: StoredTensor) -> tuple[int, int]:
    if len(weight.shape) != 2:
        raise MisfitError(f"{name} is FP8 {list(weight.shape)}, and matrices are read")
    return weight.shape[0], weight.shape[1]


def _block_by_shape(name: str, shape: tuple[int, int], scales: StoredTensor) -> tuple[int, int]:
    """One scale, or one for each row."""
    rows, width = shape
    if scales.shape in ((), (1,), (1, 1)):
        return shape
    if scales.shape in ((rows,), (rows, 1)):
        return 1, width
    raise MisfitError(
        f"{scales.name} {list(scales.shape)} does not fit {name} {list(shape)}: it must be one "
        f"scale or one for each row, [{rows}, 1]; blocks need weight_block_size in config.json's "
        "quantization_config"
    )
