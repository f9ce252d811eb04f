"""A model of any kind -> a checkpoint directory, tensor by tensor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tpuinfer.checkpoint import layout, staging
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.sources import Source, open_source
from tpuinfer.errors import CheckpointError


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str = "auto",
    progress: Progress = silent,
    *,
    sha256: str | None = None,
) -> Path:
    """Convert a model into the checkpoint directory `target`, which must not exist or be empty.

    The host holds at most twice the largest parameter and some 600 MB beside it. The directory
    appears whole or not at all; a target that holds this very conversion already is left as it is,
    so that two processes may ask for the same one.

    Args:
      source: a GGUF file, a Hugging Face directory of safetensors, or a checkpoint directory.
      target: a local path.
      dtype: what parameters are stored as: bfloat16, float32, which rounds nothing, or auto: as
        each is published, and bfloat16 for a GGUF file and for what is published in blocks.
      progress: told how many bytes of parameters are done.
      sha256: of the source, when the caller knows it.

    Returns:
      The absolute path of the directory.

    Raises:
      CheckpointError: the source is damaged or not supported, or the target is taken, remote or
        cannot be written.
      ConfigError: the source's config asks for what is not supported.
      TokenizerError: a GGUF file's vocabulary is not supported.
    """
    check_target(target)
    model = open_source(locate(source), dtype, progress, sha256)
    target = locate(target)
    with staging.staged(target) as work:
        if _is_done(target, model):
            return target
        build = work / "build"
        build.mkdir()
        write_texts(build, model)
        _write_params(build, model, progress)
        layout.write_sums(build, progress)
        staging.publish(build, target)
    return target


def check_target(target: str | Path) -> None:
    """Refuse a target in object storage.

    Raises:
      CheckpointError: it is one.
    """
    if is_remote(target):
        raise CheckpointError(
            f"{target}: conversion writes to a local directory; copy it to object storage after"
        )


def check_free(target: Path) -> None:
    """Refuse a target that holds anything.

    Raises:
      CheckpointError: it does.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target}: already exists; choose another directory or remove it")


def write_texts(build: Path, model: Source) -> None:
    """Every file that lies beside the weights."""
    for name, data in model.texts.items():
        (build / name).parent.mkdir(exist_ok=True)
        (build / name).write_bytes(data)


def stream(model: Source, progress: Progress) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every parameter in its turn, so that no two are held by the one who reads them."""
    done, total = 0, sum(param.nbytes for param in model.params.values())
    for name, param in model.params.items():
        progress("convert", done, total)
        yield name, param.read()
        done += param.nbytes
    progress("convert", done, total)


def _write_params(build: Path, model: Source, progress: Progress) -> None:
    """The Orbax tree and the manifest."""
    from tpuinfer.checkpoint import orbax_store

    orbax_store.save(build / layout.PARAMS, stream(model, progress))
    manifest = layout.Manifest(
        kind=model.kind,
        name=model.name,
        sha256=model.sha256,
        dtype=model.dtype,
        params={name: (param.shape, param.dtype.name) for name, param in model.params.items()},
        files=layout.param_files(build),
    )
    layout.write_json(build / layout.MANIFEST, manifest.to_json())


def _is_done(target: Path, model: Source) -> bool:
    """Whether the target is this conversion; refuses one that holds anything else."""
    if target.is_dir() and layout.is_whole(target):
        manifest = layout.read_manifest(target)
        if (manifest.sha256, manifest.dtype) == (model.sha256, model.dtype):
            return True
        raise CheckpointError(
            f"{target}: already holds {manifest.name} as {manifest.dtype}; choose another directory"
        )
    check_free(target)
    return False
