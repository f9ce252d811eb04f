"""From what a user calls a model to arrays on devices: the calls of the engine and front doors."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpuinfer.checkpoint import catalogue, gguf_split, hub, layout, staging
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.sources import is_hugging_face, open_source
from tpuinfer.errors import CheckpointError
from tpuinfer.quant.schemes import AUTO, PUBLISHED, Scheme

_FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".npz")


def default_cache_dir() -> Path:
    """Where converted models are kept unless the caller says otherwise."""
    import platformdirs  # not needed where --cache-dir is given

    return Path(platformdirs.user_cache_dir("tpuinfer"))


@dataclass(frozen=True)
class Found:
    """Where a model's files are.

    Attributes:
      path: a checkpoint directory, a Hugging Face directory or a GGUF file.
      name: what a conversion of it is called.
      sha256: of the files, where that is known without reading them.
    """

    path: Path
    name: str
    sha256: str | None = None


def resolve(
    model: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    published: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Path:
    """The checkpoint directory that `model` stands for, fetched and converted once if need be.

    Args:
      model: as `find` takes it.
      dtype: what a GGUF file is converted to: auto, which is bfloat16, or bfloat16, or float32,
        which rounds nothing. Anything else is kept as it was published.
      published: what was published quantised is kept so, in the nearest scheme; otherwise it is
        dequantised.
      cache_dir: where downloads and conversions go; None is `default_cache_dir()`.
      progress: told how far downloads and conversions are.

    Raises:
      CheckpointError: it is missing, damaged, of a kind that cannot be read, or the name is not
        known.
      ConfigError: its config asks for what is not supported.
    """
    if dtype not in ("auto", "bfloat16", "float32"):
        raise CheckpointError(f"dtype is {dtype!r}: it must be auto, bfloat16 or float32")
    cache = locate(cache_dir) if cache_dir is not None else default_cache_dir()
    stored = "bfloat16" if dtype == "auto" else dtype
    if not _is_path(model) and (entry := catalogue.entries().get(os.fspath(model))) is not None:
        kind = _kind("auto" if entry.files else stored, published)
        target = _converted(cache, entry.name, entry.member_sha256, kind)
        if layout.is_whole(target):
            return target
    found = find(model, cache, progress)
    path, sha256 = found.path, found.sha256
    if path.is_dir():
        if not is_hugging_face(path):
            layout.check_directory(path)
            return path
        stored = "auto"
        sha256 = sha256 or open_source(path).sha256
    if sha256 is None:
        sums = [_sha256_once(file, cache, progress) for file in gguf_split.files_of(path)]
        sha256 = gguf_split.joined(sums)
    target = _converted(cache, found.name, sha256, _kind(stored, published))
    if layout.is_whole(target):
        return target
    weights = PUBLISHED if published else AUTO
    return convert(path, target, stored, progress, sha256=sha256, weights=weights)


def find(model: str | os.PathLike[str], cache: Path, progress: Progress = silent) -> Found:
    """The files that `model` names, downloaded into `cache` if need be.

    Args:
      model: a checkpoint directory or a Hugging Face directory (local or object storage), a GGUF
        file, a catalogue name, or a name on Hugging Face's hub, org/name or org/name@revision. What
        exists or has a model file's suffix is a path; the catalogue wins over a directory of the
        same name, and ./NAME says the directory.

    Raises:
      CheckpointError: it is missing, cannot be downloaded, or the name is not known.
      ConfigError: the config of what would be downloaded asks for what is not supported.
    """
    text = os.fspath(model)
    if not _is_path(model):
        entry = catalogue.find(text)
        return Found(fetch(entry, cache / "downloads", progress), entry.name, entry.member_sha256)
    path = locate(text)
    if not path.exists():
        if isinstance(model, str) and hub.is_name(text) and not text.endswith(_FILE_SUFFIXES):
            return Found(hub.download(text, cache / "hub", progress), text.replace("/", "--"))
        raise CheckpointError(
            f"{text}: no such file or directory; a model is a checkpoint directory, a GGUF file or "
            f"a catalogue name ({', '.join(sorted(catalogue.entries()))})"
        )
    if path.is_dir():
        return Found(path, path.name)
    if is_remote(text):
        raise CheckpointError(f"{text}: a file in object storage; download it or convert it first")
    if path.suffix in _FILE_SUFFIXES and path.suffix != ".gguf":
        more = "; pass the directory that it lies in" if path.suffix == ".safetensors" else ""
        raise CheckpointError(f"{text}: {path.suffix} files cannot be read; GGUF files can{more}")
    return Found(path, path.stem)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint directory's config.json, in Hugging Face's terms.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    return layout.read_json(locate(path) / layout.CONFIG)


def stored_schemes(path: str | os.PathLike[str]) -> dict[str, Scheme]:
    """The scheme of each parameter that a checkpoint directory keeps quantised, by name.

    Raises:
      CheckpointError: the manifest is missing or damaged.
    """
    manifest = layout.read_manifest(locate(path))
    return {name: scheme for name, (scheme, _, _) in manifest.schemes.items()}


def load_params(
    path: str | os.PathLike[str],
    abstract: Mapping[str, Any],
    repeats: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The parameters of a checkpoint directory on the devices that `abstract` names.

    Every device reads only its own shards; the host holds some 128 MB beyond the arrays, or the
    largest shard if that is more. What is stored as it is and wanted quantised, or the other way
    round, is worked on as it is read, some 128 MB at a time, or the largest if that is more.

    Args:
      path: a checkpoint directory.
      abstract: name -> shape, dtype and sharding (of a concrete mesh) of every parameter, or a
        QArray of such.
      repeats: how often each head is wanted of those whose heads are repeated, by name; what is
        stored has as many times fewer in its first dimension.

    Raises:
      CheckpointError: names or shapes differ from what is stored (all differences in one message),
        or the files are missing or damaged.
    """
    from tpuinfer.checkpoint import quantised

    directory = locate(path)
    layout.check_directory(directory)
    manifest = layout.read_manifest(directory)
    layout.check_files(directory, manifest)
    return quantised.load(directory / layout.PARAMS, manifest, abstract, repeats or {})


def _is_path(model: str | os.PathLike[str]) -> bool:
    if not isinstance(model, str):
        return True
    looks = "/" in model or os.sep in model or model.startswith((".", "~"))
    if looks or model.endswith(_FILE_SUFFIXES):
        return True
    return model not in catalogue.entries() and os.path.exists(model)


def _kind(stored: str, published: bool) -> str:
    """What tells two conversions of one source apart."""
    return f"{stored}-{PUBLISHED}" if published else stored


def _converted(cache: Path, name: str, sha256: str, dtype: str) -> Path:
    safe = re.sub(r"[^\w.-]", "-", name)[:80]
    return cache / "checkpoints" / f"{safe}-{sha256[:16]}-{dtype}"


def _sha256_once(path: Path, cache: Path, progress: Progress) -> str:
    """The file's SHA-256, remembered by path, size and time of change: reading it takes a while."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
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
