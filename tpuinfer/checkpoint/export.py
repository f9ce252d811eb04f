"""A model of any kind -> a Hugging Face directory of safetensors, tensor by tensor."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import assemble, layout, safetensors, staging
from tpuinfer.checkpoint.convert import check_free, check_target, write_texts
from tpuinfer.checkpoint.paths import locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.sources import Source, open_source
from tpuinfer.models import registry
from tpuinfer.models.names import Part

SHARD_BYTES = 5 * 10**9
"""No file is larger, unless one tensor is."""

_BLOCK = 2**24
_CODES = {dtype: code for code, dtype in safetensors.DTYPES.items()}


@dataclass(frozen=True)
class _Planned:
    """A tensor to be written, and the parameters that it is made of."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[tuple[str, Part], ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def export(
    source: str | Path, target: str | Path, dtype: str = "auto", progress: Progress = silent
) -> Path:
    """Write a model as Hugging Face publishes its family, to a new or empty directory.

    The host holds one tensor and the parameters it is made of. What was published in blocks (FP8,
    MXFP4) is written as the values it stood for.

    Args:
      source: a checkpoint directory, a GGUF file or a Hugging Face directory.
      target: a local path.
      dtype: bfloat16, float32, or auto: as the source has each parameter.
      progress: told how many bytes of tensors are written.

    Returns:
      The absolute path of the directory.

    Raises:
      CheckpointError: the source is damaged or not supported, or the target is taken, remote or
        cannot be written.
      ConfigError: the source's config asks for what is not supported.
    """
    check_target(target)
    model = open_source(locate(source), dtype, progress)
    planned = _plan(model)
    target = locate(target)
    with staging.staged(target) as work:
        check_free(target)
        build = work / "build"
        build.mkdir()
        write_texts(build, model)
        if dtype != "auto":
            layout.write_json(build / layout.CONFIG, {**model.config, "dtype": dtype})
        _write_weights(build, planned, _Latest(model), progress)
        staging.publish(build, target)
    return target


def _plan(model: Source) -> list[_Planned]:
    """Every tensor of the family's published checkpoints, in the order of the parameters."""
    config = registry.read_config(model.config)
    names = registry.family_of(config).hf_names(config)
    problems = [f"{name} is missing" for name in names if name not in model.params]
    problems += [f"{name} is not part of the model" for name in model.params if name not in names]
    layout.raise_all(Path(model.name), problems)
    holders: dict[str, list[tuple[str, Part]]] = {}
    for name in model.params:
        for part in names[name]:
            holders.setdefault(part.tensor, []).append((name, part))
    return [
        _Planned(tensor, parts[0][1].shape, model.params[parts[0][0]].dtype, tuple(parts))
        for tensor, parts in holders.items()
    ]


class _Latest:
    """Reads parameters and keeps the latest one, of which several tensors may be made."""

    def __init__(self, model: Source) -> None:
        self._params = model.params
        self._name = ""
        self._values: NDArray[Any] | None = None

    def __call__(self, name: str) -> NDArray[Any]:
        if self._values is None or self._name != name:
            self._values = None
            self._name, self._values = name, self._params[name].read()
        return self._values


def _write_weights(
    build: Path,
    planned: Sequence[_Planned],
    param: Callable[[str], NDArray[Any]],
    progress: Progress,
) -> None:
    """model.safetensors, or shards and their index."""
    shards = list(_shards(planned))
    total = sum(tensor.nbytes for tensor in planned)
    index: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, 1):
        single = len(shards) == 1
        name = (
            safetensors.SINGLE if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        with (build / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                progress("write", done, total)
                values = assemble.read_tensor(tensor.parts, param, tensor.dtype)
                for block in _blocks(values):
                    file.write(block)
                del values  # before the next one is made
                done += tensor.nbytes
                index[tensor.name] = name
    progress("write", done, total)
    if len(shards) > 1:
        parts = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        layout.write_json(build / safetensors.INDEX, parts)


def _shards(planned: Sequence[_Planned]) -> Iterator[list[_Planned]]:
    """Tensors of each file: the wide types first, so that all are aligned."""
    shard: list[_Planned] = []
    held = 0
    for tensor in planned:
        if shard and held + tensor.nbytes > SHARD_BYTES:
            yield sorted(shard, key=_width)
            shard, held = [], 0
        shard.append(tensor)
        held += tensor.nbytes
    yield sorted(shard, key=_width)


def _width(tensor: _Planned) -> int:
    return -tensor.dtype.itemsize


def _header(shard: Sequence[_Planned]) -> bytes:
    """The bytes before the tensors', filled up so that those lie at a multiple of eight."""
    entries: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard:
        entries[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _blocks(values: NDArray[Any]) -> Iterator[memoryview]:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    for start in range(0, len(data), _BLOCK):
        yield data[start : start + _BLOCK]
