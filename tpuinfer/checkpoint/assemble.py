"""Published tensors <-> parameters, as a family's `Part`s say. Reads pieces, and knows no files.

A part is a view, so reading writes into the view of the parameter that lies as the tensor does:

    fused qkv [4, D]     rows   q q k v         q_proj = rows 0:2    k_proj = rows 2:3
    gate_up [E, D, 2F]   columns g u g u ...    gate_proj [E, F, D] = columns 0::2, swapped
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout
from tpuinfer.checkpoint.coded import Tensor
from tpuinfer.models.names import Names, Part

PIECE_BYTES = 2**24
"""About how much of a tensor is held beside the parameter that it fills, as float32."""

_HARMLESS = (
    re.compile(r"(.*\.)?rotary_emb\.inv_freq"),
    re.compile(r"(.*\.)?position_ids"),
)
"""Tensors that carry nothing: tables computed anew."""


def check(
    path: Path, tensors: Mapping[str, Tensor], names: Names, ignored: Sequence[str] = ()
) -> None:
    """Refuse a checkpoint whose tensors are not exactly those that the parts name.

    Args:
      ignored: patterns of tensors, beside those that carry nothing, that the family does not use.

    Raises:
      CheckpointError: tensors that are missing, misshapen, of integers or not part of the model;
        all of them in one message.
    """
    wanted = {part.tensor: part.shape for parts in names.values() for part in parts}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    for name, shape in wanted.items():
        if (tensor := tensors.get(name)) is None:
            continue
        if tensor.shape != shape:
            problems.append(f"{name} is {list(tensor.shape)} and the model needs {list(shape)}")
        elif tensor.dtype.kind not in "fV":
            problems.append(f"{name} holds {tensor.dtype} and the model needs floating point")
    known = (*_HARMLESS, *map(re.compile, ignored))
    problems += [
        f"{name} {list(tensor.shape)} is not part of the model"
        for name, tensor in tensors.items()
        if name not in wanted and not any(pattern.fullmatch(name) for pattern in known)
    ]
    layout.raise_all(path, problems)


def dtype_of(tensors: Mapping[str, Tensor], parts: Sequence[Part]) -> np.dtype[Any]:
    """The dtype that holds every part without rounding."""
    kinds = {tensors[part.tensor].dtype for part in parts}
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def read_param(
    tensors: Mapping[str, Tensor],
    parts: Sequence[Part],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """One parameter, rounded once to `dtype`; the host holds it and a piece of one tensor."""
    out = np.empty(shape, dtype)
    for part in parts:
        block = out if part.at is None else out[part.at]
        _fill(tensors[part.tensor], part, block)
    return out


def read_tensor(
    parts: Sequence[tuple[str, Part]],
    param: Callable[[str], NDArray[Any]],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """One tensor as a checkpoint publishes it, out of the parameters that it holds.

    Args:
      parts: name of the parameter and its block, for every parameter with values in the tensor.
      param: name -> the parameter.

    Raises:
      ValueError: the parts do not make the tensor whole, or say what only a reader can do: a fault
        of the family's file.
    """
    shape = parts[0][1].shape
    covered = sum(math.prod(_cut_shape(part)) for _, part in parts)
    if covered != math.prod(shape) or any(part.rotary or part.add for _, part in parts):
        raise ValueError(f"the parts of {parts[0][1].tensor} cannot be written")
    name, part = parts[0]
    if len(parts) == 1 and part.at is None and not part.swap:
        return param(name).astype(dtype, copy=False).reshape(shape)
    out = np.empty(shape, dtype)
    for name, part in parts:
        values = param(name)
        block = values if part.at is None else values[part.at]
        out[_cut(part)] = _as_stored(block, part)
    return out


def _fill(tensor: Tensor, part: Part, block: NDArray[Any]) -> None:
    """Read a part into `block`, which is contiguous."""
    if part.rotary:
        _fill_rotary(tensor, part, block)
        return
    target = _as_stored(block, part)
    first, _, step = _range(part) if part.axis == 0 else (0, 0, 1)
    height = max(1, PIECE_BYTES // (4 * math.prod(part.shape[1:]) * step))
    for start in range(0, len(target), height):
        stop = min(start + height, len(target))
        piece = tensor.rows(first + start * step, first + (stop - 1) * step + 1)
        piece = piece[::step] if part.axis == 0 else piece[_cut(part)]
        target[start:stop] = _added(piece, part)


def _fill_rotary(tensor: Tensor, part: Part, block: NDArray[Any]) -> None:
    """Read rows [N * H, ...] in ggml's order of rotary pairs into [N, H, ...], in halves.

    Rotary pair i is rows (2i, 2i + 1) of a head there and rows (i, i + H/2) here:

        ggml  a0 b0 a1 b1 a2 b2        pairs side by side
        ours  a0 a1 a2 b0 b1 b2        first halves, then second halves
    """
    heads, width, *rest = block.shape
    halves = block.reshape(heads, 2, width // 2, *rest).swapaxes(1, 2)
    start, stop, _ = _range(part)
    halves[...] = _added(tensor.rows(start, stop), part).reshape(halves.shape)


def _added(piece: NDArray[Any], part: Part) -> NDArray[Any]:
    return piece.astype(np.float32) + np.float32(part.add) if part.add else piece


def _as_stored(block: NDArray[Any], part: Part) -> NDArray[Any]:
    """The view of a parameter's block that lies as the part of its tensor does."""
    shape = _cut_shape(part)
    if not part.swap:
        return block.reshape(shape)
    return block.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)


def _cut(part: Part) -> tuple[slice, ...]:
    """The index of a part within its tensor."""
    rows = slice(None) if part.rows is None else slice(*part.rows)
    return (slice(None),) * part.axis + (rows,)


def _cut_shape(part: Part) -> tuple[int, ...]:
    shape = list(part.shape)
    shape[part.axis] = len(range(*_range(part)))
    return tuple(shape)


def _range(part: Part) -> tuple[int, int, int]:
    return part.rows or (0, part.shape[part.axis], 1)
