"""A GGUF model with its matrices in another of llama.cpp's types, for a peer to run.

Metadata and names stay those of the source, so what its conversion did to rows stays right.
"""

import math
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from tpuinfer.checkpoint import gguf_split, layout
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.gguf import GgufFile
from tpuinfer.checkpoint.gguf_tensor import TYPES, GgufTensor, reading
from tpuinfer.checkpoint.paths import locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.staging import publish, staged
from tpuinfer.errors import ConfigError

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
}

_EMBEDDINGS = ("token_embd.weight", "output.weight")
_ROUTER = "ffn_gate_inp"

_NOT_COPIED = re.compile(r"GGUF\.|split\.|general\.(architecture|alignment|file_type)$")
"""Keys that the writer writes, or that say what the new file is not."""


def file_of(
    model: str,
    checkpoint: Path,
    weights: str,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """The GGUF file behind `model` with its matrices in `weights`, made once.

    Args:
      model: as `checkpoint.load.find` takes it. checkpoint: what it was converted to.
      weights: "q8_0", "bf16", "f16", "q4_1" or "f32".

    Returns:
      A file in the cache, or the source itself where it is of this type already.

    Raises:
      ConfigError: the model comes from no GGUF file.
      CheckpointError: it is damaged, or the cache cannot be written to.
    """
    cache = locate(cache_dir) if cache_dir is not None else checkpoint_load.default_cache_dir()
    found = checkpoint_load.find(model, cache, progress)
    if found.path.is_dir():
        raise ConfigError(
            f"against is 'llama.cpp', which reads a GGUF file, and model {model!r} is a directory; "
            "nearest: the .gguf file that it was converted from, or --against transformers"
        )
    sha256 = layout.read_manifest(checkpoint).sha256
    safe = re.sub(r"[^\w.-]", "-", found.name)[:80]
    target = cache / "peers" / f"{safe}-{sha256[:16]}-{weights}.gguf"
    return requantise(found.path, target, weights, progress)


def requantise(source: Path, target: Path, weights: str, progress: Progress = silent) -> Path:
    """Write `source` with its matrices in `weights` to `target`, unless one of them is that.

    Vectors, biases and routers stay as they are. In q4_1 the embedding and the head are q8_0, as
    llama.cpp's own tool makes them where rows are no multiple of 256; rows that are no multiple of
    a block of 32 are f16.

    Returns:
      `target`, or `source` where no tensor would change.

    Raises:
      CheckpointError: the source is damaged, or the target cannot be written.
    """
    if target.exists():
        return target
    model = gguf_split.open_model(source)
    kinds = {name: _kind(tensor, weights) for name, tensor in model.tensors.items()}
    if all(kinds[name] == tensor.type_id for name, tensor in model.tensors.items()):
        return source
    with staged(target) as work:
        if not target.exists():
            _write(work / target.name, model, kinds, weights, progress)
            publish(work / target.name, target)
    return target


def _kind(tensor: GgufTensor, weights: str) -> Any:
    """The ggml type that a tensor gets."""
    name, types = tensor.name, gguf.GGMLQuantizationType
    if len(tensor.shape) < 2 or not name.endswith(".weight") or _ROUTER in name:
        return types(tensor.type_id)
    if weights == "q4_1" and name in _EMBEDDINGS:
        weights = "q8_0"
    kind = types[weights.upper()]
    return kind if tensor.shape[-1] % TYPES[kind].block == 0 else types.F16


def _write(
    file: Path, model: GgufFile, kinds: Mapping[str, Any], weights: str, progress: Progress
) -> None:
    total, done = sum(tensor.nbytes for tensor in model.tensors.values()), 0
    with closing(gguf.GGUFWriter(file, model.metadata["general.architecture"])) as writer:
        _copy_keys(model.path, writer)
        writer.add_file_type(_FILE_TYPES[weights])
        for name, tensor in model.tensors.items():
            shape = quant_shape_to_byte_shape(tensor.shape, kinds[name])
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in model.tensors.items():
            writer.write_tensor_data(_bytes(tensor, kinds[name]))
            done += tensor.nbytes
            progress(f"requantise to {weights}", done, total)


def _copy_keys(source: Path, writer: Any) -> None:
    """Every key with its own type: the reader of ours forgets which integer it was."""
    for field in gguf.GGUFReader(source).fields.values():
        value = field.contents()
        if _NOT_COPIED.match(field.name) or value == []:
            continue
        kind, *inner = field.types
        writer.add_key_value(field.name, value, kind, sub_type=inner[-1] if inner else None)


def _bytes(tensor: GgufTensor, kind: Any) -> NDArray[np.uint8]:
    """A tensor in the form that `kind` has in a file; bits that need not change do not."""
    if kind == tensor.type_id:
        with reading(tensor.path) as file:
            file.seek(tensor.offset)
            return np.frombuffer(file.read(tensor.nbytes), np.uint8)
    values = tensor.rows(0, tensor.shape[0])
    stored: NDArray[Any] = quantize(values, kind)
    return stored.reshape(-1).view(np.uint8)
