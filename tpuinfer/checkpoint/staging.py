"""A path holds the whole thing or nothing: work happens beside it and is renamed into place."""

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tpuinfer.checkpoint.paths import size_of
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError

_BLOCK = 2**20


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A private empty directory beside `target`, removed at the end.

    One process at a time works on one target: others wait here, and should look whether the target
    is there once they come in. A process that dies lets go of its lock, and what it left behind is
    removed by the next one.

    Raises:
      CheckpointError: the place cannot be written to, or filled up.
    """
    prefix = f".{target.name}.partial-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock") as alone:
            if alone:
                for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
                    shutil.rmtree(stale, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error}); "
            "choose a place that is writable and has room"
        ) from error


def publish(source: Path, target: Path) -> None:
    """Rename a finished file or directory to `target`, on disk before it shows.

    When `target` is there already, being as whole as this one, it stays.
    """
    for directory, _, names in os.walk(source):
        for name in names:
            _sync(Path(directory, name))
        _sync(Path(directory))
    if source.is_file():
        _sync(source)
    try:
        os.rename(source, target)
    except OSError:
        if not (target.is_dir() and any(target.iterdir())):
            raise
    _sync(target.parent)


def sha256_of(path: Path, label: str, progress: Progress = silent) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
      CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        total = size_of(path)
        with path.open("rb") as file:
            done = 0
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                progress(label, done, max(done, total))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file while inside; yields False where the filesystem has no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:
                yield False
                return
            if _is_at(handle, path):
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`, not one that its last holder removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
