"""Published quantised weights as our schemes keep them (`--weights published`).

Codes and scales are taken over as they are, and stand for the same values, of

    compressed-tensors  int8 by rows or tensors as int8, or as w8a8 where activations are rounded by
                        the token; int8 in groups as int8:G; symmetric int4 as int4:G, asymmetric as
                        int4z:G; float8_e4m3 as fp8, in blocks as fp8:G
    fp8                 the same: fp8 or fp8:G, G the width of a block
    awq                 int4z:G
    gptq                4 bits: int4:G if symmetric, otherwise int4z:G; 8 bits: int8:G if symmetric
    mxfp4               int8:32, codes twice the values and scales half

to the last bit where scales are published in 16 bits or are powers of two; zeros, and products of
float32 scales, are rounded to float32. Where one scale is for all of a row, 4-bit codes are in
groups of 128 that share it. Anew are fitted: float8_e5m2, asymmetric int8, 4-bit codes whose groups
are not neighbours (GPTQ's desc_act: as int8:G, for other groups of 4 bits would round once more),
and what lies in a checkpoint otherwise than as rows.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from tpuinfer.checkpoint.coded import Coded, Slab, Tensor, nearest
from tpuinfer.checkpoint.published_mxfp4 import Microscaled
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.models.blueprint import Weight
from tpuinfer.models.names import Names, Part
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray
from tpuinfer.quant.schemes import Scheme

_PIECE = 2**22
"""About how many codes are read at a time."""

Kept = tuple[Scheme, Callable[[], QArray] | None]
"""A scheme, and what reads its codes; None = they are to be fitted to the values."""

Placed = tuple[Coded | Microscaled, Part]


def codes(
    tensors: Mapping[str, Tensor], names: Names, weights: Mapping[str, Weight]
) -> dict[str, Kept]:
    """How each parameter is kept, all of whose tensors are quantised in one way."""
    found = {}
    for name, weight in weights.items():
        placed: list[Placed] = []
        for part in names[name]:
            tensor = tensors[part.tensor]
            if isinstance(tensor, Coded | Microscaled):
                placed.append((tensor, part))
        whole = len(placed) == len(names[name])
        if weight.contracted and whole and (kept := _kept(placed, weight)) is not None:
            found[name] = kept
    return found


def _kept(placed: Sequence[Placed], weight: Weight) -> Kept | None:
    width = math.prod(weight.shape[-weight.contracted :])
    exact = all(_is_rows(*one) for one in placed)
    in_order = all(isinstance(one, Microscaled) or one.is_exact() for one, _ in placed)
    schemes = {one.scheme if in_order else _refitted(one) for one, _ in placed}
    scheme = schemes.pop()
    if schemes or scheme is None:
        return None
    if exact and in_order:
        return scheme, functools.partial(_read, placed, weight, scheme)
    try:
        return scheme.fitted(width), None
    except ConfigError:
        return None


def _refitted(tensor: Coded | Microscaled) -> Scheme | None:
    """What codes are fitted anew in."""
    scheme = tensor.scheme
    if scheme is None or isinstance(tensor, Microscaled) or tensor.is_exact():
        return scheme
    return nearest("int8", tensor.wide, tensor.shape[1]) if tensor.exact else scheme


def _is_rows(tensor: Coded | Microscaled, part: Part) -> bool:
    """Whether a part is rows of codes, in their order."""
    if part.rotary or part.add:
        return False
    if isinstance(tensor, Microscaled):
        return part.swap and part.at is None and (part.rows is None or part.axis == 2)
    plain = part.rows is None or (part.axis == 0 and part.rows[2] == 1)
    return plain and not part.swap


def _read(placed: Sequence[Placed], weight: Weight, scheme: Scheme) -> QArray:
    """A parameter's codes, in host memory.

    Raises:
      CheckpointError: a file cannot be read, or holds zeros where config.json says there are none.
    """
    wanted = fit.abstract(scheme, weight.shape, weight.contracted)
    width = wanted.shape[-1]
    height = math.prod(wanted.shape[:-1])
    groups = 1 if scheme.group is None else width // scheme.group
    kind = np.dtype(ml_dtypes.float8_e4m3fn if scheme.kind == "fp8" else np.int8)
    values = np.empty((height, width), kind)
    scale = np.empty((height, groups), np.float32)
    zero = np.empty((height, groups), np.float32) if scheme.has_zero else None
    at = 0
    for tensor, part in placed:
        where = _where(tensor, groups)
        for slab in _slabs(tensor, part):
            rows = slice(at, at + len(slab.codes))
            values[rows], scale[rows] = slab.codes, slab.scale[:, where]
            if zero is not None and slab.zero is not None:
                zero[rows] = scale[rows] * -slab.zero[:, where].astype(np.float32)
            elif slab.zero is not None and slab.zero.any():
                raise CheckpointError(
                    f"{part.tensor}: config.json says its codes are symmetric, and their zeros "
                    "are not: use --weights auto, which is right with either"
                )
            at = rows.stop
    assert at == height, part.tensor
    made = values.reshape(wanted.values.shape)
    if scheme.kind == "int4":
        made = made.astype(ml_dtypes.int4)
    scales = scale.reshape(wanted.scale.shape)
    zeros = None if zero is None else zero.reshape(wanted.scale.shape)
    return QArray(made, scales, zeros, scheme.kind, wanted.grouped)  # type: ignore[arg-type]


def _where(tensor: Coded | Microscaled, groups: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """[groups]: which published scale each of ours is."""
    if isinstance(tensor, Microscaled):
        return np.arange(groups)
    width = tensor.shape[1]
    return np.arange(groups) * (width // groups) // tensor.wide


def _slabs(tensor: Coded | Microscaled, part: Part) -> Iterator[Slab]:
    """The codes of a part, a few rows at a time."""
    if isinstance(tensor, Microscaled):
        rows = slice(None) if part.rows is None else slice(*part.rows)
        for expert in range(tensor.shape[0]):
            yield tensor.slab(expert, rows)
        return
    start, stop, _ = part.rows or (0, tensor.shape[0], 1)
    step = max(1, _PIECE // tensor.shape[1])
    for first in range(start, stop, step):
        yield tensor.read(first, min(first + step, stop))
