"""compressed-tensors: the weights that llm-compressor writes.

    int-quantized, naive-quantized    X.weight [N, K] int8
    float-quantized                   X.weight [N, K] float8
    pack-quantized                    X.weight_packed [N, ceil(K * bits / 32)] int32, codes from 0,
                                      the lowest bits first, and X.weight_shape = [N, K]
    X.weight_scale [N, G]             G = 1, K / group_size, or blocks; [1] for a whole tensor
    X.weight_zero_point [N, G] int8   of what is asymmetric; with weight_packed it is packed along
                                      N: [ceil(N * bits / 32), G] int32
    X.weight_g_idx [K]                the group of each column, as early releases had it

Source: the package compressed-tensors, github.com/vllm-project/compressed-tensors.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import published_fp8, published_groups
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
    signed,
    unpack,
)
from tpuinfer.checkpoint.published_groups import Group
from tpuinfer.checkpoint.safetensors import StoredTensor

Zeros = Callable[[int, int], NDArray[np.int16]]
"""Rows [start:stop] -> the codes of their zeros, [stop - start, G]."""

_INT8, _INT32 = np.dtype(np.int8), np.dtype(np.int32)
_INTEGERS = (_INT32, np.dtype(np.int64))


def refusal(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read; None = it is."""
    return published_groups.refusal(found)


def made(name: str, stored: Stored) -> Made | None:
    """The weight that a stored tensor holds the codes of; None = it is another kind of tensor.

    Raises:
      MisfitError: what it needs is missing or does not fit, or its group says otherwise.
    """
    codes, packed = stored.tensors[name], name.endswith(".weight_packed")
    is_float = codes.dtype in published_fp8.TYPES
    if not packed and not (name.endswith(".weight") and (is_float or codes.dtype == _INT8)):
        return None
    module = codes.name.rpartition(".")[0]
    group = published_groups.group_of(module, published_groups.groups(stored.found))
    if is_float != (group.kind == "float"):
        raise MisfitError(f"{name} holds {codes.dtype}, and config_groups say {group.kind}")
    if is_float:
        rows, columns = group.block
        return published_fp8.scaled(name, stored, (rows, columns) if rows and columns else None)
    weight = name.removesuffix("_packed")
    shape = _packed_shape(weight, codes, stored, group) if packed else _plain_shape(name, codes)
    return _integers(weight, name, shape, stored, group)


def _integers(weight: str, name: str, shape: tuple[int, int], stored: Stored, group: Group) -> Made:
    """A matrix of integer codes, which lie in tensor `name`."""
    block, codes = group.block_of(shape), stored.tensors[name]
    scales = stored.need(f"{weight}_scale", f"{name} holds codes")
    by_rows = grid(scales, weight, shape, block, "fV")
    zeros = stored.tensors.get(f"{weight}_zero_point")
    if not group.symmetric:
        zeros = stored.need(f"{weight}_zero_point", f"{name} holds asymmetric codes")
    zero = None if zeros is None else _zeros(weight, zeros, shape, block, group.bits)
    order = _order(weight, stored.tensors.get(f"{weight}_g_idx"), shape)
    wide = block[1]
    scheme = nearest(_word(group), wide, shape[1])
    exact = divides(scheme, wide, shape[1]) and (group.symmetric or group.bits == 4)
    read = functools.partial(_read, codes, shape[1], group.bits, by_rows, zero)
    coded = Coded(weight, shape, stored.dtype, read, wide, scheme, exact, order)
    ends = ("_packed", "_scale", "_zero_point", "_shape", "_g_idx")
    beside = (weight + end for end in ends if weight + end in stored.tensors)
    return Made(weight, coded, (name, *beside))


def _word(group: Group) -> str:
    """The scheme that comes nearest to a group's codes."""
    if group.bits == 4:
        return "int4" if group.symmetric else "int4z"
    return "w8a8" if group.dynamic and group.symmetric else "int8"


def _read(
    codes: StoredTensor, width: int, bits: int, scales: Grid, zeros: Zeros | None, *at: int
) -> Slab:
    """Rows [start:stop], which `at` is."""
    found = codes.rows(*at)
    if codes.dtype == _INT32:
        found = signed(unpack(found, bits)[:, :width], bits)
    return Slab(found, scales.scale(*at), None if zeros is None else zeros(*at))


def _plain_shape(name: str, codes: StoredTensor) -> tuple[int, int]:
    if len(codes.shape) != 2:
        raise MisfitError(f"{name} holds codes {list(codes.shape)}, and matrices are read")
    return codes.shape[0], codes.shape[1]


def _packed_shape(
    weight: str, codes: StoredTensor, stored: Stored, group: Group
) -> tuple[int, int]:
    """[N, K], which weight_shape says, and the words must have room for."""
    beside = stored.need(f"{weight}_shape", f"{codes.name} holds packed codes")
    if beside.shape != (2,) or beside.dtype not in _INTEGERS:
        raise MisfitError(f"{beside.name} is {beside.dtype} {list(beside.shape)}, and no two sizes")
    rows, width = (int(size) for size in beside.rows(0, 2))
    wanted = rows, -(-width * group.bits // 32)
    if codes.shape != wanted or codes.dtype != _INT32 or width < 1:
        raise MisfitError(
            f"{codes.name} is {codes.dtype} {list(codes.shape)}, and [{rows}, {width}] in "
            f"{group.bits} bits is int32 {list(wanted)}"
        )
    return rows, width


def _order(weight: str, order: StoredTensor | None, shape: tuple[int, int]) -> StoredTensor | None:
    """The group of each column, where it is stored."""
    if order is not None and (order.shape != shape[1:] or order.dtype not in _INTEGERS):
        raise MisfitError(
            f"{order.name} is {order.dtype} {list(order.shape)}, and {weight} {list(shape)} needs "
            f"int32 [{shape[1]}]"
        )
    return order


def _zeros(
    weight: str, zeros: StoredTensor, shape: tuple[int, int], block: tuple[int, int], bits: int
) -> Zeros:
    """What reads zero points, packed along the rows or not."""
    if zeros.dtype != _INT32:
        plain = grid(zeros, weight, shape, block, "i")
        return lambda start, stop: plain.rows(start, stop).astype(np.int16)
    count = -(-shape[0] // block[0])
    each = 32 // bits
    wanted = -(-count // each), -(-shape[1] // block[1])
    if zeros.shape != wanted:
        raise MisfitError(
            f"{zeros.name} {list(zeros.shape)} does not fit {weight} {list(shape)} in blocks of "
            f"{list(block)}: packed along the rows it must be {list(wanted)}"
        )

    def read(start: int, stop: int) -> NDArray[np.int16]:
        first, last = start // block[0], -(-stop // block[0])
        words = zeros.rows(first // each, -(-last // each))
        found = signed(unpack(words.T, bits), bits).T[first % each :]
        return found[np.arange(start, stop) // block[0] - first].astype(np.int16)

    return read
