"""A model as it can be converted: its config, the files beside the weights, parameters on request.

Three kinds: a GGUF file, a Hugging Face directory of safetensors, and a checkpoint directory. What
a model asks for that is not supported is refused here, from its config, before a weight is read.
"""

import fnmatch
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tpuinfer.checkpoint import (
    assemble,
    gguf_config,
    gguf_kinds,
    gguf_names,
    gguf_split,
    layout,
    published,
    published_codes,
    safetensors,
    staging,
    tied,
    wrapped,
)
from tpuinfer.checkpoint.coded import Tensor
from tpuinfer.checkpoint.paths import changed_at, is_own, size_of
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.model_config import AnyConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.models.names import Names
from tpuinfer.quant.qarray import QArray
from tpuinfer.quant.schemes import Scheme

_log = logging.getLogger(__name__)

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
"""What parameters may be cast to."""

_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_TEXTS_BELOW = ("[0-9]_*/config.json",)
_NOT_TEXTS = ("*.index.json", layout.MANIFEST, layout.SUMS)
_MAX_TEXT = 2**27
_TAIL_BYTES = 2**16


@dataclass(frozen=True)
class Param:
    """A parameter that is read when asked for.

    Attributes:
      dtype: what `read` returns, and what it is stored as.
      read: the values, in the parameter's shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Codes:
    """A parameter as it was published or stored, quantised; read when asked for.

    Attributes:
      scheme: which it is kept by, or comes nearest to.
      read: the QArray, of arrays in host memory; None = quantise the values.
    """

    scheme: Scheme
    read: Callable[[], QArray] | None = None


@dataclass(frozen=True)
class Source:
    """A model that can be converted.

    Attributes:
      kind: "gguf" or "safetensors": what it was published as.
      name: of the file or directory.
      sha256: tells it from other sources and from other states of itself.
      dtype: what parameters become: bfloat16, float32, or auto, which is what each is published in.
      config: config.json of what is written.
      texts: every file that lies beside the weights, config.json among them.
      params: by name.
      codes: of those that are quantised.
      own: it is a checkpoint directory of ours.
    """

    kind: str
    name: str
    sha256: str
    dtype: str
    config: Mapping[str, Any]
    texts: Mapping[str, bytes]
    params: Mapping[str, Param]
    codes: Mapping[str, Codes] = field(default_factory=dict)
    own: bool = False


def open_source(
    path: Path, dtype: str = "auto", progress: Progress = silent, sha256: str | None = None
) -> Source:
    """The model in a GGUF file, a Hugging Face directory or a checkpoint directory.

    Args:
      dtype: auto, bfloat16 or float32; auto is bfloat16 for a GGUF file.
      sha256: of the source, when the caller knows it.

    Raises:
      CheckpointError: it is damaged, incomplete, or of no such kind.
      ConfigError: its config asks for what is not supported.
      TokenizerError: a GGUF file's vocabulary is not supported.
    """
    if dtype not in ("auto", *DTYPES):
        raise CheckpointError(f"dtype is {dtype!r}: it must be auto, {' or '.join(DTYPES)}")
    if not path.is_dir():
        return _open_gguf(path, "bfloat16" if dtype == "auto" else dtype, progress, sha256)
    if is_hugging_face(path):
        return _open_hugging_face(path, dtype, sha256)
    layout.check_directory(path)
    return _open_checkpoint(path, dtype)


def is_hugging_face(path: Path) -> bool:
    """Whether a directory is one of safetensors with its config.json, and none of ours."""
    if (path / layout.MANIFEST).exists() or not (path / layout.CONFIG).exists():
        return False
    return any(entry.name.endswith(".safetensors") for entry in path.iterdir())


def _open_gguf(path: Path, dtype: str, progress: Progress, sha256: str | None) -> Source:
    from tpuinfer.tokenizer.gguf_vocab import tokenizer_files

    file = gguf_split.open_model(path)
    described = gguf_config.describe(file, dtype)
    try:
        config = registry.read_config(described.config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: as a config.json: {error}") from None
    family = registry.family_of(config)
    assert family.gguf_names is not None, family.name
    parts = gguf_names.as_written(family.gguf_names(config, described.architecture), file.tensors)
    assemble.check(path, file.tensors, parts, [re.escape(name) for name in described.tensors])
    texts = {layout.CONFIG: layout.json_bytes(described.config), **tokenizer_files(file.metadata)}
    params = _params(config, file.tensors, parts, dtype)
    if sha256 is None:
        parts_ = gguf_split.files_of(path)
        sha256 = gguf_split.joined([staging.sha256_of(one, "read", progress) for one in parts_])
    able = weights(registry.build(config))
    codes = {
        name: Codes(
            scheme,
            functools.partial(gguf_kinds.read, file.tensors, parts[name], able[name], scheme),
        )
        for name, scheme in gguf_kinds.nearest(file.tensors, parts, able).items()
    }
    return Source("gguf", path.name, sha256, dtype, described.config, texts, params, codes)


def _open_hugging_face(path: Path, dtype: str, sha256: str | None) -> Source:
    whole = layout.read_json(path / layout.CONFIG)
    config = registry.read_config(whole)
    family = registry.family_of(config)
    outer = wrapped.around(family, whole)
    found = whole if outer is None else outer.config(whole)
    published.check_method(path, found)
    stored: Mapping[str, safetensors.StoredTensor] = safetensors.open_directory(path)
    if outer is not None:
        stored = wrapped.unwrap(path, stored, outer)
    if len(stored) < config.layers:
        raise CheckpointError(
            f"{path}: config.json says num_hidden_layers is {config.layers}, and there are "
            f"{len(stored)} tensors: not one for each layer; is the download complete?"
        )
    parts = family.hf_names(config)
    tensors = tied.without_head(path, published.logical(path, found, stored), parts)
    wanted = {part.tensor for own in parts.values() for part in own}
    tensors = published.without_empty_biases(path, tensors, wanted)
    assemble.check(path, tensors, parts, family.ignored)
    params = _params(config, tensors, parts, dtype)
    texts = _texts(path)
    sha256 = sha256 or _fingerprint(stored, texts)
    if any(key in found for key in published.KEYS):
        found = {key: value for key, value in found.items() if key not in published.KEYS}
    if found is not whole:
        texts[layout.CONFIG] = layout.json_bytes(found)
    kept = published_codes.codes(tensors, parts, weights(registry.build(config)))
    codes = {name: Codes(*one) for name, one in kept.items()}
    return Source("safetensors", path.name, sha256, dtype, found, texts, params, codes)


def _params(
    config: AnyConfig, tensors: Mapping[str, Tensor], parts: Names, dtype: str
) -> dict[str, Param]:
    """Every parameter of a model, out of published tensors."""
    params = {}
    for name, weight in weights(registry.build(config)).items():
        kind = DTYPES.get(dtype) or assemble.dtype_of(tensors, parts[name])
        read = functools.partial(assemble.read_param, tensors, parts[name], weight.shape, kind)
        params[name] = Param(weight.shape, kind, read)
    return params


def _open_checkpoint(path: Path, dtype: str) -> Source:
    from tpuinfer.checkpoint import orbax_store, quantised

    manifest = layout.read_manifest(path)
    layout.check_files(path, manifest)
    read = orbax_store.HostReader(path / layout.PARAMS)
    params = {}
    codes: dict[str, Codes] = {}
    beside: set[str] = set()
    for name, (scheme, shape, contracted) in manifest.schemes.items():
        parts = quantised.abstract_parts(name, scheme, shape, contracted)
        coded = functools.partial(_read_codes, read, name, scheme, parts)
        kind = DTYPES.get(dtype) or DTYPES["bfloat16"]
        params[name] = Param(shape, kind, functools.partial(_widened, coded, shape, kind))
        codes[name] = Codes(scheme, coded)
        beside |= parts.keys()
    for name, (shape, stored) in manifest.params.items():
        if name in beside:
            continue
        kind = DTYPES.get(dtype) or np.dtype(stored)
        params[name] = Param(shape, kind, functools.partial(read, name, kind))
    kept = manifest.dtype if dtype == "auto" else dtype
    config = layout.read_json(path / layout.CONFIG)
    about = manifest.kind, manifest.name, manifest.sha256, kept
    return Source(*about, config, _texts(path), params, codes, own=True)


def _read_codes(
    read: Callable[..., NDArray[Any]],
    name: str,
    scheme: Scheme,
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
) -> QArray:
    from tpuinfer.checkpoint import quantised

    return quantised.from_parts(
        scheme, {part: read(part, kind) for part, (_, kind) in parts.items()}, name
    )


def _widened(
    coded: Callable[[], QArray], shape: tuple[int, ...], kind: np.dtype[Any]
) -> NDArray[Any]:
    """The values that codes stand for."""
    from tpuinfer.checkpoint import quantised

    return quantised.widened_on_host(coded(), shape, kind)


def _texts(path: Path) -> dict[str, bytes]:
    """The text files of a directory, and SentencePiece models; no code and no pickles.

    Pipes, and links that lead out of the directory or nowhere, are left and named in the log.

    Raises:
      CheckpointError: config.json is one of them, or a file is too large or cannot be read.
    """
    names = []
    for file in sorted(path.iterdir(), key=lambda entry: entry.name):
        if file.is_dir():
            below = f"{file.name}/{layout.CONFIG}"
            if _matches(below, _TEXTS_BELOW) and (path / below).exists():
                names.append(below)
        elif _matches(file.name, _TEXTS) and not _matches(file.name, _NOT_TEXTS):
            names.append(file.name)
    foreign = [name for name in names if not is_own(path / name, path)]
    if layout.CONFIG in foreign:
        raise CheckpointError(f"{path / layout.CONFIG}: links to a file elsewhere; copy it here")
    if foreign:
        _log.warning(
            "%s: left out, for they lead elsewhere or are no files: %s", path, ", ".join(foreign)
        )
    return {name: _read(path / name) for name in names if name not in foreign}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(path: Path) -> bytes:
    try:
        if (size := size_of(path)) > _MAX_TEXT:
            raise CheckpointError(f"{path}: has {size} bytes; at most {_MAX_TEXT} are copied")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _tail(path: Path) -> bytes:
    """The last bytes of a file."""
    with path.open("rb") as file:
        file.seek(max(0, size_of(path) - _TAIL_BYTES))
        return file.read(_TAIL_BYTES)


def _fingerprint(
    tensors: Mapping[str, safetensors.StoredTensor], texts: Mapping[str, bytes]
) -> str:
    """Tells two states of a Hugging Face directory apart.

    Of the weights it takes in names, types, shapes, places, times of change and the last values of
    each file, not all of them: reading 140 GB to know whether they were converted already would
    take as long as converting them.
    """
    digest = hashlib.sha256()
    for path in sorted({tensor.path for tensor in tensors.values()}):
        digest.update(f"{path.name} {size_of(path)} {changed_at(path)}\n".encode())
        digest.update(_tail(path))
    for name, tensor in sorted(tensors.items()):
        place = f"{name} {tensor.dtype} {tensor.shape} {tensor.path.name} {tensor.offset}\n"
        digest.update(place.encode())
    for name, data in sorted(texts.items()):
        digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()
