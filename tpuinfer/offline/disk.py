"""Files that are there whole or not at all, and the words for why they could not be written."""

import contextlib
import fcntl
import io
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from tpuinfer.checkpoint.paths import is_remote, locate, size_of
from tpuinfer.errors import CheckpointError
from tpuinfer.offline.task import BatchError

NEW = ".new"  # what a file is called until it takes its name
_BLOCK = 1 << 20


def place(path: str | Path) -> Path:
    """The Path of a file here, links followed, or in object storage.

    Raises:
      BatchError: a storage that cannot be reached.
    """
    if not is_remote(path):
        return Path(os.path.realpath(Path(path).expanduser()))
    try:
        return locate(path)
    except CheckpointError as error:
        raise BatchError(str(error)) from None


def reason(error: Exception) -> str:
    """Why a file could not be read or written, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def remove(path: Path) -> None:
    """Removes a file if it is there and can be removed: what is left of it does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Makes the names in `path`, a folder of this machine, survive a power loss.

    Raises:
      OSError: it cannot be opened or synced.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_alone(path: Path, flags: int = 0) -> int:
    """Open a file to read and write, made if need be, that no other process has so open.

    The kernel lets it go with the process, however that ends.

    Args:
      flags: further ones of `os.open`.

    Raises:
      BlockingIOError: another has it. OSError: it cannot be opened, or the disk knows no locks.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def put(path: Path, data: bytes) -> None:
    """Writes a file; until it is written whole and durable, what was there before is there.

    Args:
      path: as `place` gives it.

    Raises:
      Exception: an OSError of this machine, or whatever the driver of an object storage raises.
    """
    put_stream(path, io.BytesIO(data))


def put_stream(path: Path, source: BinaryIO) -> None:
    """As `put`, of all that `source` holds, in bounded memory. Object storage does it by itself."""
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    if is_remote(path):
        with path.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
        if size_of(path) != size:
            raise OSError(f"{size_of(path)} of {size} bytes arrived")
        return
    new = path.with_name(path.name + NEW)
    try:
        with open(new, "wb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        remove(new)
        raise
    sync_folder(path.parent)
