"""From what a user calls a model to arrays on devices: the calls of the engine and front doors."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpuinfer.checkpoint import catalogue, layout, staging
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError

if TYPE_CHECKING:
    import jax

_FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".npz")


def default_cache_dir() -> Path:
    """Where converted models are kept unless the caller says otherwise."""
    import platformdirs  # not needed where --cache-dir is given

    return Path(platformdirs.user_cache_dir("tpuinfer"))


def resolve(
    model: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Path:
    """The checkpoint directory that `model` stands for, fetched and converted once if need be.

    Args:
      model: a checkpoint directory (local or object storage), a GGUF file, or a catalogue name.
        What has a slash or a model file's suffix, or else exists, is a path; the catalogue wins
        over a directory of the same name, and ./NAME says the directory.
      dtype: what a conversion stores: auto, which is bfloat16, or bfloat16, or float32, which
        rounds nothing. A directory is taken as it is.
      cache_dir: where downloads and conversions go; None is `default_cache_dir()`.
      progress: told how far downloads and conversions are.

    Raises:
      CheckpointError: it is missing, damaged, of a kind that cannot be read, or the name is not
        known.
    """
    if dtype not in ("auto", "bfloat16", "float32"):
        raise CheckpointError(f"dtype is {dtype!r}: it must be auto, bfloat16 or float32")
    stored = "bfloat16" if dtype == "auto" else dtype
    cache = locate(cache_dir) if cache_dir is not None else default_cache_dir()
    text = os.fspath(model)
    if not _is_path(model):
        return _from_catalogue(text, stored, cache, progress)
    path = locate(text)
    if not path.exists():
        raise CheckpointError(
            f"{text}: no such file or directory; a model is a checkpoint directory, a GGUF file or "
            f"a catalogue name ({', '.join(sorted(catalogue.entries()))})"
        )
    if path.is_dir():
        layout.check_directory(path)
        return path
    if is_remote(text):
        raise CheckpointError(f"{text}: a file in object storage; download it or convert it first")
    if path.suffix in _FILE_SUFFIXES and path.suffix != ".gguf":
        raise CheckpointError(f"{text}: {path.suffix} files cannot be read; GGUF files can")
    sha256 = _sha256_once(path, cache, progress)
    target = _converted(cache, path.stem, sha256, stored)
    if layout.is_whole(target):
        return target
    return convert(path, target, stored, progress, sha256=sha256)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint directory's config.json, in Hugging Face's terms.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    return layout.read_json(locate(path) / layout.CONFIG)


def load_params(
    path: str | os.PathLike[str], abstract: "Mapping[str, jax.ShapeDtypeStruct]"
) -> "dict[str, jax.Array]":
    """The parameters of a checkpoint directory on the devices that `abstract` names.

    Every device reads only its own shards; the host holds some 128 MB beyond the arrays, or the
    largest shard if that is more.

    Args:
      path: a checkpoint directory.
      abstract: name -> shape, dtype and sharding (of a concrete mesh) of every parameter.

    Raises:
      CheckpointError: names or shapes differ from what is stored (all differences in one message),
        or the files are missing or damaged.
    """
    from tpuinfer.checkpoint import orbax_store

    directory = locate(path)
    layout.check_directory(directory)
    manifest = layout.read_manifest(directory)
    shapes = {name: shape for name, (shape, _) in manifest.params.items()}
    orbax_store.check_same(directory, abstract, shapes)
    layout.check_files(directory, manifest)
    return orbax_store.load(directory / layout.PARAMS, abstract)


def _is_path(model: str | os.PathLike[str]) -> bool:
    if not isinstance(model, str):
        return True
    looks = "/" in model or os.sep in model or model.startswith((".", "~"))
    if looks or model.endswith(_FILE_SUFFIXES):
        return True
    return model not in catalogue.entries() and os.path.exists(model)


def _from_catalogue(name: str, dtype: str, cache: Path, progress: Progress) -> Path:
    entry = catalogue.find(name)
    target = _converted(cache, entry.name, entry.member_sha256, dtype)
    if layout.is_whole(target):
        return target
    source = fetch(entry, cache / "downloads", progress)
    return convert(source, target, dtype, progress, sha256=entry.member_sha256)


def _converted(cache: Path, name: str, sha256: str, dtype: str) -> Path:
    return cache / "checkpoints" / f"{name[:80]}-{sha256[:16]}-{dtype}"


def _sha256_once(path: Path, cache: Path, progress: Progress) -> str:
    """The file's SHA-256, remembered by path, size and time of change: reading it takes a while."""
    status = path.stat()
    key = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ino}"
    note = cache / "sources" / hashlib.sha256(os.fsencode(key)).hexdigest()
    try:
        remembered = note.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        remembered = ""
    if re.fullmatch(r"[0-9a-f]{64}", remembered):
        return remembered
    sha256 = staging.sha256_of(path, f"read {path.name}", progress)
    with staging.staged(note) as work:
        (work / "sha256").write_text(sha256, "ascii")
        staging.publish(work / "sha256", note)
    return sha256
