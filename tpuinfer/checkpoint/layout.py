"""What a checkpoint directory holds, and whether it still holds what was written.

<dir>/params/        the Orbax tree
<dir>/config.json    as Hugging Face writes it
<dir>/...            the tokenizer's files
<dir>/tpuinfer.json  the manifest: format, source, dtype, every parameter's shape and dtype
<dir>/SHA256SUMS     every file's SHA-256, as sha256sum prints it; written last
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpuinfer.checkpoint import staging
from tpuinfer.checkpoint.paths import check_regular, size_of
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.quant.schemes import NONE, Scheme

FORMAT = 1
FORMAT_QUANTISED = 2
"""Of a directory with quantised parameters: what knows format 1 alone must refuse it."""

PARAMS = "params"
CONFIG = "config.json"
MANIFEST = "tpuinfer.json"
SUMS = "SHA256SUMS"

SHOWN = 8
"""How many problems one message names."""

_MAX_TEXT = 2**26
_SMALL = 2**20
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Manifest:
    """What was converted from what.

    Attributes:
      kind: of the source, such as "gguf".
      name: the source's file name.
      sha256: of the source.
      dtype: what parameters are stored as.
      params: name -> (shape, dtype) of every stored array.
      files: every file of the Orbax tree -> its size in bytes.
      schemes: parameter that is quantised -> (scheme, the parameter's shape, how many of its last
        dimensions are contracted).
    """

    kind: str
    name: str
    sha256: str
    dtype: str
    params: dict[str, tuple[tuple[int, ...], str]]
    files: dict[str, int]
    schemes: dict[str, tuple[Scheme, tuple[int, ...], int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        quantised = {
            name: {"scheme": str(scheme), "shape": list(shape), "contracted": contracted}
            for name, (scheme, shape, contracted) in self.schemes.items()
        }
        return {
            "format": FORMAT_QUANTISED if quantised else FORMAT,
            "source": {"kind": self.kind, "name": self.name, "sha256": self.sha256},
            "dtype": self.dtype,
            "params": {
                name: {"shape": list(shape), "dtype": dtype}
                for name, (shape, dtype) in self.params.items()
            },
            "files": self.files,
            **({"quantised": quantised} if quantised else {}),
        }


def is_whole(path: Path) -> bool:
    """Whether `path` is a finished checkpoint directory; its bytes are not looked at."""
    return (path / MANIFEST).is_file() and (path / SUMS).is_file()


def check_directory(path: Path) -> None:
    """Refuse what is not a finished checkpoint directory, saying what it is.

    Raises:
      CheckpointError: no such directory, or one of another kind.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_dir():
        raise CheckpointError(f"{path}: is a file, and a checkpoint is a directory")
    missing = [name for name in (MANIFEST, PARAMS, CONFIG) if not (path / name).exists()]
    if missing:
        raise CheckpointError(f"{path}: {_kind_of(path, missing)}")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint directory.

    Raises:
      CheckpointError: it is missing, damaged or of another format.
    """
    data = read_json(path / MANIFEST)
    if data.get("format") not in (FORMAT, FORMAT_QUANTISED):
        raise CheckpointError(
            f"{path / MANIFEST}: format {data.get('format')!r} is not known; this version reads "
            f"formats {FORMAT} and {FORMAT_QUANTISED}: convert the model again"
        )
    try:
        source = data["source"]
        params = {
            str(name): (tuple(int(size) for size in entry["shape"]), str(entry["dtype"]))
            for name, entry in data["params"].items()
        }
        kind, name, sha256 = (str(source[key]) for key in ("kind", "name", "sha256"))
        files = {str(file): int(size) for file, size in data["files"].items()}
        schemes = {
            str(name): _scheme_of(str(name), entry, params)
            for name, entry in data.get("quantised", {}).items()
        }
        return Manifest(kind, name, sha256, str(data["dtype"]), params, files, schemes)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path / MANIFEST}: damaged manifest ({type(error).__name__}: {error})"
        ) from error


def _scheme_of(
    name: str, entry: Mapping[str, Any], params: Mapping[str, tuple[tuple[int, ...], str]]
) -> tuple[Scheme, tuple[int, ...], int]:
    """One entry of "quantised", as `Manifest.schemes` has it.

    Raises:
      ValueError, ConfigError: it does not fit itself, or what is stored.
    """
    scheme = Scheme.parse(entry["scheme"])
    shape = tuple(int(size) for size in entry["shape"])
    contracted = int(entry["contracted"])
    if scheme.word == NONE or not 0 < contracted < len(shape) or min(shape) < 1:
        raise ValueError(f"{name} cannot be {scheme} with {contracted} of {list(shape)} contracted")
    outs = shape[:-contracted]
    if scheme.fitted(math.prod(shape[-contracted:])) != scheme:
        raise ValueError(f"{name} of {list(shape)} cannot be {scheme}")
    for part in (name, f"{name}.scale", *([f"{name}.zero"] if scheme.has_zero else [])):
        if params[part][0][: len(outs)] != outs:
            raise ValueError(f"{part} is {list(params[part][0])}, and {name} is {list(shape)}")
    return scheme, shape, contracted


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      CheckpointError: it cannot be read or is no JSON object.
    """
    data = read_any_json(path)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(data).__name__}, not an object")
    return data


def read_any_json(path: Path) -> Any:
    """A JSON value of any kind from a file.

    Raises:
      CheckpointError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error


def raise_all(path: Path, problems: Sequence[str]) -> None:
    """One CheckpointError that names the first few of all problems; nothing when there is none."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:SHOWN])}{more}")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_bytes(json_bytes(data))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """A JSON object as it is written here."""
    return (json.dumps(data, indent=1) + "\n").encode()


def param_files(path: Path) -> dict[str, int]:
    """Every file of the Orbax tree, relative to the checkpoint directory -> its size in bytes."""
    names = (name for name in _files(path) if name.startswith(f"{PARAMS}/"))
    return {name: size_of(path / name) for name in names}


def check_files(path: Path, manifest: Manifest) -> None:
    """Refuse a checkpoint with parameter files that are missing or cut, or small ones damaged.

    Reads no more than the small files, which hold Orbax's own tables; `verify` reads all.

    Raises:
      CheckpointError: names the first such file.
    """
    sums = _read_sums(path / SUMS)
    for name, size in manifest.files.items():
        try:
            found = size_of(path / name)
        except (OSError, ValueError):
            raise CheckpointError(f"{path}: {name} is missing; convert the model again") from None
        if found != size:
            raise CheckpointError(
                f"{path}: {name} has {found} bytes, not {size}; was it copied in full?"
            )
        if size <= _SMALL and staging.sha256_of(path / name, "check") != sums.get(name):
            raise CheckpointError(f"{path}: {name} is damaged; copy it or convert the model again")


def write_sums(path: Path, progress: Progress = silent) -> None:
    """Write SHA256SUMS over every file of the directory."""
    lines = [
        f"{staging.sha256_of(path / name, 'checksums', progress)}  {name}\n"
        for name in _files(path)
    ]
    (path / SUMS).write_text("".join(lines), "utf-8")


def sums_of_texts(path: Path) -> dict[str, str]:
    """File -> SHA-256 of what lies beside the parameters: the config and the tokenizer's files.

    They are those that were written down; the files are not read.

    Raises:
      CheckpointError: the sums cannot be read.
    """
    sums = _read_sums(path / SUMS)
    return {
        name: digest
        for name, digest in sums.items()
        if name != MANIFEST and not name.startswith(f"{PARAMS}/")
    }


def verify(path: Path, progress: Progress = silent) -> None:
    """Read every file of a checkpoint directory and compare it with SHA256SUMS.

    Raises:
      CheckpointError: a file is damaged, missing or extra; names the first few of each.
    """
    check_directory(path)
    sums = _read_sums(path / SUMS)
    found = set(_files(path))
    problems = [f"{name} is missing" for name in sums if name not in found]
    problems += [f"{name} is not in {SUMS}" for name in sorted(found - sums.keys())]
    for name in sorted(found & sums.keys()):
        if staging.sha256_of(path / name, f"verify {name}", progress) != sums[name]:
            problems.append(f"{name} is damaged")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{path}: {', '.join(problems[:5])}{more}; remove the directory and convert again"
        )


def _files(path: Path) -> list[str]:
    """Every file under `path` but the sums, as sorted relative posix paths."""
    return sorted(name for name in _below(path, "") if name != SUMS)


def _below(path: Path, prefix: str) -> Iterator[str]:
    """Every file of a directory and those in it; object storage has no glob that does this."""
    for entry in path.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"


def _read_sums(path: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        match = _SUM_LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise CheckpointError(f"{path}: line {number} is no SHA-256 and new file name")
        sums[match[2]] = match[1]
    return sums


def _read_text(path: Path) -> str:
    check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > _MAX_TEXT:
        raise CheckpointError(f"{path}: is larger than {_MAX_TEXT} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 ({error.reason})") from error


def _kind_of(path: Path, missing: list[str]) -> str:
    """What a directory that is no checkpoint seems to be, and what to do about it."""
    names = sorted(entry.name for entry in path.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    if not names:
        return "is an empty directory"
    if ggufs:
        return f"holds a GGUF file: pass the file itself, {path / ggufs[0]}"
    if any(name.endswith(".safetensors") for name in names):
        return (
            "is a directory of safetensors, no checkpoint directory: convert makes one of it, if "
            f"its {CONFIG} lies beside them"
        )
    if any(name.endswith((".bin", ".pth", ".pt", ".pkl")) for name in names):
        return "holds pickled weights, which are never read: they can run code"
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names:
        return f"is a bare Orbax tree without {MANIFEST}: pass the directory that convert wrote"
    return f"is not a checkpoint directory (no {', '.join(missing)})"
