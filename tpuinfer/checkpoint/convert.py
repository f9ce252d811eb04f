"""A GGUF file -> a checkpoint directory, tensor by tensor."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import layout, names, staging
from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str = "bfloat16",
    progress: Progress = silent,
    *,
    sha256: str | None = None,
) -> Path:
    """Convert a GGUF file into the checkpoint directory `target`, which must not exist or be empty.

    The host holds the parameters in their stored dtype and some 300 MB beside them. The directory
    appears whole or not at all; a target that holds this very conversion already is left as it is,
    so that two processes may ask for the same one.

    Args:
      source: the GGUF file, of architecture "llama".
      target: a local path.
      dtype: what parameters are stored as, bfloat16 or float32, which rounds nothing.
      progress: told how many bytes of parameters are done.
      sha256: of the source, when the caller knows it.

    Returns:
      The absolute path of the directory.

    Raises:
      CheckpointError: the file is damaged or not supported, or the target is taken, remote or
        cannot be written.
      TokenizerError: the file's vocabulary is not supported.
    """
    if is_remote(target):
        raise CheckpointError(
            f"{target}: conversion writes to a local directory; copy it to object storage after"
        )
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}: a checkpoint stores bfloat16 or float32")
    from tpuinfer.checkpoint import orbax_store

    path, target = locate(source), locate(target)
    file = open_gguf(path)
    dims = names.describe(file)
    plan = names.plan(file, dims)
    sha256 = sha256 or staging.sha256_of(path, "read", progress)
    with staging.staged(target) as work:
        if _is_done(target, sha256, dtype):
            return target
        build = work / "build"
        build.mkdir()
        _write_texts(build, file, dims, dtype)
        orbax_store.save(build / layout.PARAMS, _params(file, plan, dtype, progress))
        shapes = {name: (source.shape, dtype) for name, source in plan.items()}
        sizes = layout.param_files(build)
        manifest = layout.Manifest("gguf", path.name, sha256, dtype, shapes, sizes)
        layout.write_json(build / layout.MANIFEST, manifest.to_json())
        layout.write_sums(build, progress)
        staging.publish(build, target)
    return target


def _is_done(target: Path, sha256: str, dtype: str) -> bool:
    """Whether the target is this conversion; refuses one that holds anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if target.is_dir() and layout.is_whole(target):
        manifest = layout.read_manifest(target)
        if (manifest.sha256, manifest.dtype) == (sha256, dtype):
            return True
        raise CheckpointError(
            f"{target}: already holds {manifest.name} as {manifest.dtype}; choose another directory"
        )
    raise CheckpointError(f"{target}: already exists; choose another directory or remove it")


def _write_texts(build: Path, file: GgufFile, dims: names.Dims, dtype: str) -> None:
    """config.json and the tokenizer's files; first, since they may refuse the file."""
    from tpuinfer.tokenizer.gguf_vocab import tokenizer_files

    layout.write_json(build / layout.CONFIG, names.hf_config(dims, file.metadata, dtype))
    for name, data in tokenizer_files(file.metadata).items():
        (build / name).write_bytes(data)


def _params(
    file: GgufFile, plan: dict[str, names.Source], dtype: str, progress: Progress
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every parameter in its turn, so that none is held in two forms for long."""
    sizes = {name: math.prod(s.shape) * _DTYPES[dtype].itemsize for name, s in plan.items()}
    done, total = 0, sum(sizes.values())
    for name, source in plan.items():
        progress("convert", done, total)
        yield name, names.read_param(file, source, _DTYPES[dtype])
        done += sizes[name]
    progress("convert", done, total)
