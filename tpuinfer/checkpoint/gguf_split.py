"""GGUF models in several files: NAME-00001-of-00003.gguf and those that follow it.

llama.cpp's gguf-split writes them. Each has a header of its own, and the first one all metadata.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.errors import CheckpointError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, or all files of a model whose first one it is, by its name.

    >>> [file.name for file in files_of(Path("m-00001-of-00002.gguf"))]
    ['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']
    """
    match = _PART.fullmatch(path.name)
    if match is None or int(match[2]) != 1:
        return (path,)
    numbers = range(1, int(match[3]) + 1)
    return tuple(path.with_name(f"{match[1]}-{n:05}-of-{match[3]}.gguf") for n in numbers)


def joined(sums: Sequence[str]) -> str:
    """One SHA-256 for the files of a model; that of a single file is its own."""
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def open_model(path: Path) -> GgufFile:
    """Read and check the headers of a model's files.

    Returns:
      The first one's metadata, and the tensors of all.

    Raises:
      CheckpointError: a file is damaged or missing, or the files do not belong together.
    """
    first = open_gguf(path)
    count = first.metadata.get("split.count", 0)
    if count in (0, 1):
        return first
    files = files_of(path)
    if len(files) != count or first.metadata.get("split.no") != 0:
        raise CheckpointError(
            f"{path}: is one of {count} parts: pass the first of them, under the name that "
            "gguf-split gave it, NAME-00001-of-NNNNN.gguf"
        )
    tensors = dict(first.tensors)
    for number, file in enumerate(files[1:], 1):
        part = open_gguf(file)
        stated = part.metadata.get("split.no"), part.metadata.get("split.count")
        if stated != (number, count):
            raise CheckpointError(f"{file}: is not part {number + 1} of {count}")
        if twice := tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{file}: tensor {min(twice)} is in an earlier part too")
        tensors |= part.tensors
    wanted = first.metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise CheckpointError(f"{path}: its parts hold {len(tensors)} tensors, and not {wanted}")
    return GgufFile(path, first.metadata, tensors)
