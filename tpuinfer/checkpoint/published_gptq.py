"""GPTQ and AWQ: integer codes of 4 or 8 bits, packed in int32, with inputs before outputs.

                 GPTQ (arXiv:2210.17323)              AWQ, "gemm" (arXiv:2306.00978)
    X.qweight    [K * bits / 32, N]                   [K, N / 8]
    X.qzeros     [ceil(K / group), N * bits / 32]     [ceil(K / group), N / 8]
    X.scales     [ceil(K / group), N]                 [ceil(K / group), N]
    X.g_idx      [K], the group of each input

Codes go from 0. Each word of GPTQ holds neighbours, the lowest bits first: along K in qweight,
along N in qzeros; of the first format ("gptq") zeros are one less than they mean, of the second
("gptq_v2") they are what they mean. A word of AWQ holds eight neighbours along N as

    bits       0-3  4-7  8-11  12-15  16-19  20-23  24-27  28-31
    neighbour   0    2    4     6      1      3      5      7
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint.coded import (
    Coded,
    Held,
    Made,
    MisfitError,
    Slab,
    Stored,
    divides,
    nearest,
    signed,
    unpack,
)
from tpuinfer.checkpoint.safetensors import StoredTensor

_INT32 = np.dtype(np.int32)
_WHERE = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which four bits of a word of AWQ hold neighbour 0, 1, ..."""


def refusal_gptq(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read; None = it is."""
    form = found.get("checkpoint_format") or found.get("format") or "gptq"
    dynamic = found.get("dynamic") or {}
    if found.get("bits") not in (4, 8) or type(found["bits"]) is not int:
        return f"gptq with {str(found.get('bits'))[:40]} bits"
    if str(form).lower() not in ("gptq", "gptq_v2"):
        return f"gptq with checkpoint_format {repr(form)[:40]}"
    if found.get("is_marlin_format"):
        return "gptq in the format of marlin"
    if found.get("pack_dtype", "int32") != "int32":
        return f"gptq packed in {str(found['pack_dtype'])[:40]}"
    if not isinstance(dynamic, dict) or not all(str(key).startswith("-:") for key in dynamic):
        return "gptq with dynamic sizes, which differ from module to module"
    return None if _is_group(found.get("group_size", 128)) else _group_refused("gptq", found)


def refusal_awq(found: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read; None = it is."""
    form = found.get("version") or found.get("checkpoint_format") or found.get("format") or "gemm"
    bits = found.get("bits", found.get("w_bit", 4))
    if str(form).lower() != "gemm":
        return f"awq with version {repr(form)[:40]}"
    if bits != 4:
        return f"awq with {str(bits)[:40]} bits"
    if found.get("zero_point", True) is not True:
        return "awq without zero points"
    return None if _is_group(_awq_group(found)) else _group_refused("awq", found)


def made_gptq(name: str, stored: Stored) -> Made | None:
    """The weight whose codes a stored tensor holds; None = it is another kind of tensor.

    Raises:
      MisfitError: what it needs is missing or does not fit.
    """
    if not name.endswith(".qweight"):
        return None
    found, module = stored.found, name.removesuffix(".qweight")
    bits, size = found["bits"], found.get("group_size", 128)
    weight, qzeros, scales = parts = _parts(module, stored)
    if len(weight.shape) != 2:
        raise _misfit(parts, bits, "GPTQ")
    width, count = weight.shape[0] * 32 // bits, weight.shape[1]
    wide = width if size == -1 else size
    groups = -(-width // wide)
    if qzeros.shape != (groups, -(-count * bits // 32)) or scales.shape != (groups, count):
        raise _misfit(parts, bits, f"GPTQ in groups of {wide}")
    order = stored.tensors.get(f"{module}.g_idx")
    if order is not None and (order.shape != (width,) or order.dtype.kind != "i"):
        raise MisfitError(f"{order.name} {order.dtype} {list(order.shape)} must be int32 [{width}]")
    is_symmetric = found.get("sym") is True
    word = "int8" if bits == 8 else "int4" if is_symmetric else "int4z"
    scheme = nearest(word, wide, width)
    exact = divides(scheme, wide, width) and (bits == 4 or is_symmetric)
    form = found.get("checkpoint_format") or found.get("format") or "gptq"
    less = 0 if str(form).lower() == "gptq_v2" else 1
    read = functools.partial(_read_gptq, parts, stored.held, bits, less)
    shape = count, width
    coded = Coded(f"{module}.weight", shape, stored.dtype, read, wide, scheme, exact, order)
    return _made(module, coded, stored)


def made_awq(name: str, stored: Stored) -> Made | None:
    """The weight whose codes a stored tensor holds; None = it is another kind of tensor.

    Raises:
      MisfitError: what it needs is missing or does not fit.
    """
    if not name.endswith(".qweight"):
        return None
    module, size = name.removesuffix(".qweight"), _awq_group(stored.found)
    weight, qzeros, scales = parts = _parts(module, stored)
    if len(weight.shape) != 2:
        raise _misfit(parts, 4, "AWQ")
    width, count = weight.shape[0], 8 * weight.shape[1]
    wide = width if size == -1 else size
    groups = -(-width // wide)
    if qzeros.shape != (groups, weight.shape[1]) or scales.shape != (groups, count):
        raise _misfit(parts, 4, f"AWQ in groups of {wide}")
    scheme = nearest("int4z", wide, width)
    read = functools.partial(_read_awq, parts, stored.held)
    exact, shape = divides(scheme, wide, width), (count, width)
    coded = Coded(f"{module}.weight", shape, stored.dtype, read, wide, scheme, exact)
    return _made(module, coded, stored)


def _read_gptq(
    parts: tuple[StoredTensor, ...], held: Held, bits: int, less: int, start: int, stop: int
) -> Slab:
    """Args: less: what zeros lack."""
    weight, qzeros, scales = held.read(parts)
    codes = signed(unpack(weight[:, start:stop].T, bits), bits)
    zeros = unpack(qzeros, bits)[:, start:stop].astype(np.int16) + np.int16(less)
    zeros -= np.int16(1 << (bits - 1))
    return Slab(codes, _scale(scales, start, stop), zeros.T)


def _read_awq(parts: tuple[StoredTensor, ...], held: Held, start: int, stop: int) -> Slab:
    weight, qzeros, scales = held.read(parts)
    codes, zeros = (signed(_neighbours(one, start, stop), 4) for one in (weight, qzeros))
    return Slab(
        np.ascontiguousarray(codes.T), _scale(scales, start, stop), zeros.T.astype(np.int16)
    )


def _neighbours(words: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
    """Columns [start:stop] of what AWQ packed, [K, N / 8] -> [K, stop - start]."""
    first = start // 8
    some = np.ascontiguousarray(words[:, first : -(-stop // 8)])
    columns = np.empty((*some.shape, 8), np.uint8)
    for neighbour, place in enumerate(_WHERE):
        columns[..., neighbour] = some >> 4 * place & 15
    return columns.reshape(len(some), -1)[:, start - 8 * first : stop - 8 * first]


def _scale(scales: NDArray[Any], start: int, stop: int) -> NDArray[np.float32]:
    return scales[:, start:stop].T.astype(np.float32)


def _parts(module: str, stored: Stored) -> tuple[StoredTensor, StoredTensor, StoredTensor]:
    """qweight, qzeros and scales of a module."""
    weight, *beside = (
        stored.need(f"{module}.{end}", f"{module}.qweight holds codes")
        for end in ("qweight", "qzeros", "scales")
    )
    qzeros, scales = beside
    if {weight.dtype, qzeros.dtype} != {_INT32} or scales.dtype.kind not in "fV":
        raise MisfitError(
            f"{weight.name} {weight.dtype}, {qzeros.name} {qzeros.dtype} and {scales.name} "
            f"{scales.dtype} must be int32, int32 and floating point"
        )
    return weight, qzeros, scales


def _misfit(parts: tuple[StoredTensor, ...], bits: int, what: str) -> MisfitError:
    shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in parts)
    return MisfitError(f"{shapes} do not fit each other as {what} with {bits} bits")


def _made(module: str, coded: Coded, stored: Stored) -> Made:
    names = (f"{module}.{end}" for end in ("qweight", "qzeros", "scales", "g_idx"))
    return Made(coded.name, coded, tuple(name for name in names if name in stored.tensors))


def _awq_group(found: Mapping[str, Any]) -> Any:
    return found.get("group_size", found.get("q_group_size", 128))


def _is_group(size: Any) -> bool:
    return type(size) is int and (size == -1 or size > 0)


def _group_refused(method: str, found: Mapping[str, Any]) -> str:
    return f"{method} with group_size {str(found.get('group_size'))[:40]}"
