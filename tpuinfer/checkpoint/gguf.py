"""GGUF files: a header reader that trusts nothing.

Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md; versions 2 and 3, little
endian. The `gguf` package's own reader takes seconds, and minutes on a hostile file, where this one
takes a tenth of a second and refuses.
"""

import dataclasses
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from tpuinfer.checkpoint.gguf_tensor import TYPES, GgufTensor, reading
from tpuinfer.errors import CheckpointError

MAX_KEYS = 2**14
MAX_TENSORS = 2**17
MAX_DIMS = 4
MAX_STRING = 2**24
MAX_ITEMS = 2**23
"""Elements of all metadata arrays of a file together; a 262k vocabulary needs about 2**20."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header; holds no open file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, dequantised to float32.

        Raises:
          CheckpointError: the file shrank or cannot be read, or a value is not finite.
        """
        tensor = self.tensors[name]
        return tensor.rows(0, tensor.shape[0])


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read and check a GGUF file's header; no tensor is read.

    Raises:
      CheckpointError: the file cannot be read, is not GGUF of version 2 or 3, or any count, length,
        type or offset in it does not fit the file; names the file, what and where.
    """
    with reading(Path(path)) as file:
        cursor = _Cursor(file, os.fstat(file.fileno()).st_size, Path(path))
        _read_magic(cursor)
        tensor_count = cursor.count("tensor count", MAX_TENSORS)
        metadata = _read_metadata(cursor, cursor.count("metadata count", MAX_KEYS))
        tensors = _read_tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GgufFile(Path(path), metadata, tensors)


class _Cursor:
    """Reads forward through a file, and never past its end."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file = file
        self.size = size
        self.path = path
        self.offset = 0
        self.items = 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged GGUF file: {what}, at byte {self.offset}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.offset:
            raise self.fail(
                f"{what} needs {count} bytes and the file has {self.size - self.offset} left"
            )
        data = self.file.read(count)
        if len(data) != count:
            raise self.fail(f"the file ended while {what} was read")
        self.offset += count
        return data

    def number(self, form: struct.Struct, what: str) -> Any:
        return form.unpack(self.take(form.size, what))[0]

    def count(self, what: str, limit: int) -> int:
        value: int = self.number(_U64, what)
        if value > limit:
            raise self.fail(f"{what} is {value}, more than {limit}")
        return value

    def string(self, what: str) -> str:
        length = self.count(f"length of {what}", MAX_STRING)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None


def _read_magic(cursor: _Cursor) -> None:
    magic = cursor.file.read(8)
    if magic[:4] != b"GGUF" or len(magic) < 8:
        raise CheckpointError(
            f"{cursor.path}: not a GGUF file (it begins with {magic[:4]!r}, not b'GGUF')"
        )
    cursor.offset = 8
    version = _U32.unpack(magic[4:])[0]
    if version not in (2, 3):
        swapped = int.from_bytes(magic[4:], "big")
        kind = f"big-endian version {swapped}" if swapped in (2, 3) else f"version {version}"
        raise CheckpointError(
            f"{cursor.path}: GGUF {kind} is not supported; little-endian versions 2 and 3 are"
        )


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} appears twice")
        kind = cursor.number(_U32, f"type of {key}")
        metadata[key] = _read_array(cursor, key) if kind == _ARRAY else _scalar(cursor, kind)(key)
    return metadata


def _scalar(cursor: _Cursor, kind: int) -> Callable[[str], Any]:
    """What reads one value of a type, given its name."""
    if kind == _STRING:
        return cursor.string
    if kind == _BOOL:
        return lambda what: _bools(cursor, cursor.take(1, what), what)[0]
    form = _SCALARS.get(kind)
    if form is None:
        raise cursor.fail(f"metadata type {kind} is not known")
    return lambda what: cursor.number(form, what)


def _read_array(cursor: _Cursor, key: str) -> list[Any]:
    kind = cursor.number(_U32, f"element type of {key}")
    count = cursor.count(f"length of {key}", MAX_ITEMS - cursor.items)
    cursor.items += count
    if kind == _STRING:
        return _read_strings(cursor, key, count)
    if kind == _BOOL:
        return _bools(cursor, cursor.take(count, key), key)
    form = _SCALARS.get(kind)
    if form is None:
        raise cursor.fail(f"{key} is an array of type {kind}, which is not known")
    data = cursor.take(count * form.size, key)
    return list(struct.unpack(f"<{count}{form.format[-1]}", data))


def _read_strings(cursor: _Cursor, key: str, count: int) -> list[str]:
    """A vocabulary: hundreds of thousands of strings, so the loop calls as little as it can."""
    if count * 8 > cursor.size - cursor.offset:
        raise cursor.fail(f"{key} claims {count} strings, more than the file has room for")
    read, unpack = cursor.file.read, _U64.unpack
    strings = []
    for index in range(count):
        head = read(8)
        length = unpack(head)[0] if len(head) == 8 else MAX_STRING
        if length > min(MAX_STRING, cursor.size - cursor.offset - 8):
            raise cursor.fail(f"{key}[{index}] runs past the end of the file")
        data = read(length)
        if len(data) != length:
            raise cursor.fail(f"the file ended while {key}[{index}] was read")
        try:
            strings.append(data.decode())
        except UnicodeDecodeError:
            raise cursor.fail(f"{key}[{index}] is not UTF-8") from None
        cursor.offset += 8 + length
    return strings


def _bools(cursor: _Cursor, data: bytes, what: str) -> list[bool]:
    if data.strip(b"\x00\x01"):
        raise cursor.fail(f"{what} is a truth value that is neither 0 nor 1")
    return [byte == 1 for byte in data]


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    legal = type(alignment) is int and 8 <= alignment <= 2**16 and alignment.bit_count() == 1
    if not legal:
        raise cursor.fail(
            f"general.alignment is {alignment!r}; it must be a power of two from 8 to 65536"
        )
    return int(alignment)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    relative: dict[str, GgufTensor] = {}
    for _ in range(count):
        tensor = _read_tensor(cursor, alignment)
        if tensor.name in relative:
            raise cursor.fail(f"tensor {tensor.name!r} appears twice")
        relative[tensor.name] = tensor
    start = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    end, previous = start, "the header"
    for tensor in sorted(relative.values(), key=lambda tensor: tensor.offset):
        offset = start + tensor.offset
        if offset < end:
            raise cursor.fail(f"tensor {tensor.name} at {offset} overlaps {previous}")
        end, previous = offset + tensor.nbytes, tensor.name
        if end > cursor.size:
            raise cursor.fail(
                f"tensor {tensor.name} ends at byte {end} and the file at {cursor.size}; "
                "is the download complete?"
            )
        tensors[tensor.name] = dataclasses.replace(tensor, offset=offset)
    return tensors


def _read_tensor(cursor: _Cursor, alignment: int) -> GgufTensor:
    """One entry of the tensor table; its offset is still from the beginning of the data."""
    name = cursor.string("tensor name")
    dims = cursor.number(_U32, f"rank of {name}")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.fail(f"tensor {name} has {dims} dimensions; 1 to {MAX_DIMS} are possible")
    shape = tuple(cursor.number(_U64, f"shape of {name}") for _ in range(dims))[::-1]
    type_id = cursor.number(_U32, f"type of {name}")
    kind = TYPES.get(type_id)
    if kind is None:
        raise CheckpointError(
            f"{cursor.path}: tensor {name} has ggml type {_type_name(type_id)}, which is not "
            f"supported; these are: {', '.join(known.name for known in TYPES.values())}"
        )
    if min(shape) < 1 or shape[-1] % kind.block:
        raise cursor.fail(
            f"tensor {name} has shape {list(shape)}; {kind.name} needs at least 1 everywhere and "
            f"a multiple of {kind.block} last"
        )
    offset = cursor.number(_U64, f"offset of {name}")
    if offset % alignment:
        raise cursor.fail(f"tensor {name} is at offset {offset}, no multiple of {alignment}")
    return GgufTensor(cursor.path, name, shape, type_id, offset)


def _type_name(type_id: int) -> str:
    from gguf import GGMLQuantizationType

    try:
        return f"{type_id} ({GGMLQuantizationType(type_id).name})"
    except ValueError:
        return str(type_id)
