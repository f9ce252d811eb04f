"""safetensors files: a header reader that trusts nothing, and tensors read in pieces.

Source: the format's description, github.com/huggingface/safetensors. A file is the header's length
(8 bytes, little endian), the header (JSON: name -> dtype, shape and where its bytes begin and end),
and the tensors' bytes, row-major and little endian, without gaps or overlaps.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout
from tpuinfer.checkpoint.paths import check_regular, size_of
from tpuinfer.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEADER = 100_000_000
MAX_DIMS = 8
MAX_SIDE = 2**40

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Element types that are read, as the header names them."""

_BLOCK = 2**22
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place in a file; nothing of it is read until it is asked for.

    Attributes:
      offset: of its first byte, from the beginning of the file.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Elements [start:stop] of the first dimension, [stop - start, ...].

        Raises:
          CheckpointError: the file shrank or cannot be read.
        """
        rest = self.shape[1:]
        out = np.empty((stop - start, *rest), self.dtype)
        into = out.reshape(-1).view(np.uint8).data
        with _reading(self.path) as file:
            file.seek(self.offset + start * math.prod(rest) * self.dtype.itemsize)
            done = 0
            while done < len(into):
                block = file.read(min(_BLOCK, len(into) - done))
                if not block:
                    raise CheckpointError(f"{self.path}: the file ends inside tensor {self.name}")
                into[done : done + len(block)] = block
                done += len(block)
        return out


def open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name; only the header is read.

    Raises:
      CheckpointError: the file cannot be read, or its header does not describe it exactly.
    """
    check_regular(path)
    with _reading(path) as file:
        size = size_of(path)
        start = file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise _damaged(path, f"it has {len(start)} bytes, not even a header's length")
        (length,) = _LENGTH.unpack(start)
        if length > min(MAX_HEADER, size - _LENGTH.size):
            raise _damaged(
                path,
                f"its header would have {length} bytes, and the file has {size} "
                f"(at most {MAX_HEADER} may be the header's)",
            )
        text = file.read(length)
    if len(text) != length:
        raise _damaged(path, "the file ended while its header was read")
    begin = _LENGTH.size + length
    entries = _parse(path, text)
    tensors = {name: _tensor(path, name, entry, begin) for name, entry in entries.items()}
    _check_cover(path, entries, size - begin)
    return tensors


def open_directory(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a Hugging Face directory: of model.safetensors, or of every shard.

    Raises:
      CheckpointError: there is none, a shard is missing or damaged, a tensor is not where the index
        says, or two shards hold the same one.
    """
    if (path / SINGLE).exists():
        return open_file(path / SINGLE)
    if (path / INDEX).exists():
        return _open_shards(path, _read_index(path / INDEX))
    found = sorted(file.name for file in path.iterdir() if file.name.endswith(".safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: holds {len(found)} safetensors files, and neither {SINGLE} nor {INDEX} "
            "says which make the model"
        )
    return open_file(path / found[0])


def _open_shards(path: Path, index: Mapping[str, str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for shard in sorted(set(index.values())):
        if not (path / shard).exists():
            problems.append(f"{shard} is missing")
            continue
        for name, tensor in open_file(path / shard).items():
            if name in tensors:
                problems.append(f"{name} is both in {tensors[name].path.name} and in {shard}")
            tensors[name] = tensor
    problems += [
        f"{name} is not in {shard}"
        for name, shard in index.items()
        if (path / shard).exists() and (name not in tensors or tensors[name].path.name != shard)
    ]
    layout.raise_all(path, problems)
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file name, out of a shard index."""
    found = layout.read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: has no weight_map")
    for name, shard in found.items():
        plain = isinstance(shard, str) and shard.endswith(".safetensors")
        if not plain or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{path}: tensor {name} is said to be in {shard!r}, which is no safetensors file "
                "of this directory"
            )
    return found


def _parse(path: Path, text: bytes) -> dict[str, dict[str, Any]]:
    """The header's entries, without its free metadata."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands there twice")
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise _damaged(path, f"its header is a JSON {type(entries).__name__}, not an object")
    entries.pop("__metadata__", None)
    return entries


def _tensor(path: Path, name: str, entry: object, begin: int) -> StoredTensor:
    """One entry of a header, checked by itself; `begin` is where the tensors' bytes begin."""
    if not isinstance(entry, dict):
        raise _damaged(path, f"tensor {name} is described by {str(entry)[:40]!r}")
    values: list[Any] = [entry.get(key) for key in ("dtype", "shape", "data_offsets")]
    kind, shape, ends = values
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} holds {repr(kind)[:40]}, which is not read; these are: "
            f"{', '.join(DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise _damaged(path, f"tensor {name} has shape {str(shape)[:60]}")
    if not _are_sizes(ends) or len(ends) != 2 or ends[0] > ends[1]:
        raise _damaged(path, f"tensor {name} has offsets {str(ends)[:60]}")
    nbytes = math.prod(shape) * DTYPES[kind].itemsize
    if ends[1] - ends[0] != nbytes:
        raise _damaged(
            path, f"tensor {name} takes {ends[1] - ends[0]} bytes, and {kind} {shape} is {nbytes}"
        )
    return StoredTensor(path, name, DTYPES[kind], tuple(shape), begin + ends[0])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < MAX_SIDE for n in value)


def _check_cover(path: Path, entries: Mapping[str, dict[str, Any]], size: int) -> None:
    """Refuse tensors that overlap, leave gaps or end elsewhere than the file does."""
    at = 0
    for (start, stop), name in sorted((e["data_offsets"], name) for name, e in entries.items()):
        if start != at:
            raise _damaged(
                path, f"tensor {name} begins at {start}, and the one before ends at {at}"
            )
        at = stop
    if at != size:
        raise _damaged(path, f"its tensors take {at} bytes and it holds {size}")


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged safetensors file: {what}; is the download complete?")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file, here or in object storage; failures to read it become CheckpointError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
