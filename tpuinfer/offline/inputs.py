"""The files of an input: found by pattern, read from the beginning as often as it takes.

What can be read only once (stdin, pipes) or is far away (object storage) is copied into a temporary
file without a name.
"""

import glob
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from tpuinfer.checkpoint.paths import is_remote
from tpuinfer.offline.disk import place, reason
from tpuinfer.offline.task import BatchError

T = TypeVar("T")

STDIN = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
PARQUET_SUFFIX = ".parquet"

_WILD = re.compile(r"[*?\[]")
_BLOCK = 2**20
_FAULTS = (OSError, EOFError, zlib.error)  # of reading, gzip's among them


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file holds: its name, its length and the SHA-256 of its bytes in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def find_files(
    patterns: Sequence[str], spool: Path | None, written: Sequence[str] = ()
) -> "list[InputFile]":
    """The files that `patterns` name, in that order; what one pattern matches is sorted.

    Args:
      patterns: paths, globs (`**` goes through folders), "-" for stdin.
      spool: the folder for copies of what can be read only once; None is the system's.
      written: files and folders that the batch writes: a glob passes over them, which makes
        `*.jsonl` the same input before the batch and after.

    Raises:
      BatchError: a pattern that matches nothing, a file that cannot be read, is of an unknown
        kind, is named twice or is to be written.
    """
    if not patterns:
        raise BatchError(
            "no input is given: name a file, a pattern such as in/*.jsonl, or - (stdin)"
        )
    own = [_real(path) for path in written]
    paths = [path for pattern in patterns for path in _matches(pattern, own)]
    seen: dict[str, str] = {}
    for path in paths:
        real = _real(path)
        if real in seen:
            raise BatchError(f"{path} is named twice: its lines would be asked twice")
        seen[real] = path
    return [
        InputFile(path, name="stdin" if path == STDIN else name, spool=spool)
        for path, name in zip(paths, _names(paths), strict=True)
    ]


class InputFile:
    """One file, which may not change while it is an input.

    Attributes:
      name: for a reader: its last part, and those before it that set it apart from other inputs.
        It is the same from whichever folder the batch is run. path: as it was given.
      suffix: of its kind, in lower case, ".gz" put aside; stdin is ".jsonl".
    """

    def __init__(self, path: str, *, name: str, spool: Path | None) -> None:
        self.path = path
        self.name = name
        self.suffix, self._packed = _kind(path)
        self._copy = _copied(path, spool) if _comes_once(path) else None
        if self._copy is not None:
            weakref.finalize(self, os.close, self._copy)
        self._before = self._state()
        self._digest: Digest | None = None

    def open(self) -> BinaryIO:
        """Its bytes from the beginning, unpacked; the caller closes it.

        Raises:
          BatchError: it cannot be opened, or is another than it was.
        """
        self.check()
        file = self._raw()
        if not self._packed:
            return file
        return cast(BinaryIO, io.BufferedReader(_Unpacked(file), _BLOCK))

    def digest(self) -> Digest:
        """What the file holds, packed as it is: read once, then known.

        Raises:
          BatchError: it cannot be read, or has changed.
        """
        if self._digest is None:
            sha, size = hashlib.sha256(), 0
            try:
                with self._raw() as file:
                    while block := file.read(_BLOCK):
                        sha.update(block)
                        size += len(block)
            except OSError as error:
                raise BatchError(f"{self.path}: cannot be read ({reason(error)})") from None
            self.check()
            self._digest = Digest(self.name, size, sha.hexdigest())
        return self._digest

    def check(self) -> None:
        """Refuse a file that is no longer the one it was.

        Raises:
          BatchError: its length, time of change or identity is another.
        """
        if self._state() != self._before:
            raise BatchError(
                f"{self.path}: has changed while it was read; what was answered is kept, start the "
                "batch again when the file stays as it is"
            )

    def guarded(self, rows: Iterator[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """`rows`, with what can go wrong in reading them as a `BatchError`."""
        number = 0
        try:
            for row in rows:
                number = row[0]
                yield row
        except _FAULTS as error:
            raise BatchError(
                f"{self.path}: cannot be read after line {number} ({reason(error)})"
            ) from None
        self.check()

    def _raw(self) -> BinaryIO:
        if self._copy is not None:
            return cast(BinaryIO, io.BufferedReader(_Copy(self._copy), _BLOCK))
        try:
            return open(self.path, "rb", buffering=_BLOCK)
        except OSError as error:
            raise BatchError(f"{self.path}: cannot be read ({reason(error)})") from None

    def _state(self) -> tuple[int, ...]:
        if self._copy is not None:
            return ()
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise BatchError(f"{self.path}: cannot be read ({reason(error)})") from None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _Unpacked(gzip.GzipFile):
    """Closes what it reads from, as well."""

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


class _Copy(io.RawIOBase):
    """One reader of a file that has no name: each has a place of its own in it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, len(view), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._at, os.fstat(self._descriptor).st_size)[whence]
        self._at = start + offset
        return self._at


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest ends that set paths apart: /x/a.jsonl, /y/a.jsonl, b -> x/a.jsonl, y/a.jsonl, b.

    Args:
      paths: to different files.
    """
    whole = [PurePosixPath(path if is_remote(path) else os.path.abspath(path)) for path in paths]
    lengths = [1] * len(whole)
    while True:
        ends = [path.parts[-length:] for path, length in zip(whole, lengths, strict=True)]
        count = Counter(ends)
        if len(count) == len(ends):
            return [str(PurePosixPath(*end)) for end in ends]
        lengths = [n + (count[end] > 1) for n, end in zip(lengths, ends, strict=True)]


def _real(path: str) -> str:
    """The one name of a file, whichever way it is named."""
    if path == STDIN or is_remote(path):
        return path.rstrip("/")
    return os.path.realpath(os.path.expanduser(path))


def _is_own(path: str, own: Sequence[str]) -> bool:
    real = _real(path)
    return any(real == one or real.startswith(f"{one}/") for one in own)


def _matches(pattern: str, own: Sequence[str]) -> list[str]:
    if pattern == STDIN:
        return [pattern]
    if is_remote(pattern):
        found = _remote_matches(pattern)
    elif os.path.lexists(path := os.path.expanduser(pattern)):
        found = [path]
    else:
        found = sorted(glob.glob(path, recursive=True))
    if _is_own(pattern, own):
        raise BatchError(
            f"{pattern}: is an input, and the batch would write it; give it another --output"
        )
    found = [path for path in found if not _is_own(path, own)]
    if not found:
        what = "matches no file" if _WILD.search(pattern) else "is not there"
        raise BatchError(f"{pattern}: {what}")
    return found


def _remote_matches(pattern: str) -> list[str]:
    """As `_matches`, for object storage, below the last folder without a wildcard."""
    parts = pattern.split("/")
    wild = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts))
    folder = place("/".join(parts[:wild]))
    try:
        if wild == len(parts):
            return [pattern] if folder.exists() else []
        return sorted(str(path) for path in folder.glob("/".join(parts[wild:])))
    except Exception as error:  # a driver of object storage has errors of its own
        raise BatchError(f"{pattern}: cannot be listed ({reason(error)})") from None


def _kind(path: str) -> tuple[str, bool]:
    """(suffix, whether it is packed) of what can be read."""
    if path == STDIN:
        return JSON_SUFFIXES[0], False
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    packed = suffixes[-1:] == [".gz"]
    suffix = "".join((suffixes[:-1] if packed else suffixes)[-1:])
    if suffix in JSON_SUFFIXES or suffix in CSV_SUFFIXES:
        return suffix, packed
    if suffix == PARQUET_SUFFIX and not packed:
        return suffix, False
    if not suffix and _is_pipe(path):
        return JSON_SUFFIXES[0], False
    if Path(path).is_dir():
        raise BatchError(f"{path}: is a folder; name its files: {Path(path) / '*.jsonl'}")
    known = ", ".join((*JSON_SUFFIXES, *CSV_SUFFIXES))
    raise BatchError(
        f"{path}: its kind is not known; the name must end with {known} (or these and .gz) or "
        f"{PARQUET_SUFFIX}"
    )


def _comes_once(path: str) -> bool:
    return path == STDIN or is_remote(path) or _is_pipe(path)


def _is_pipe(path: str) -> bool:
    """Whether it is a pipe, as <(command) is."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def _copied(path: str, spool: Path | None) -> int:
    """The descriptor of a nameless copy."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="tpuinfer-input-", dir=spool)
    except OSError as error:
        raise BatchError(f"{path}: no temporary copy can be made ({reason(error)})") from None
    os.unlink(name)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as copy, _opened(path) as file:
            shutil.copyfileobj(file, copy, _BLOCK)
    except Exception as error:  # a driver of object storage has errors of its own
        os.close(descriptor)
        raise BatchError(f"{path}: cannot be copied ({reason(error)})") from None
    return descriptor


def _opened(path: str) -> AbstractContextManager[BinaryIO]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    if not is_remote(path):
        return open(path, "rb")  # as it is named: a nameless pipe has no real path
    return cast(AbstractContextManager[BinaryIO], place(path).open("rb"))
