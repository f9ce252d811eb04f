"""Local paths and object storage behind one function."""

import os
import re
import stat
from pathlib import Path
from typing import Any, cast

from tpuinfer.errors import CheckpointError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_FLATTENED = re.compile(r"(gs|s3):/[^/]")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names object storage, such as gs://bucket/model."""
    return _SCHEME.match(os.fspath(path)) is not None


def locate(path: str | os.PathLike[str]) -> Path:
    """An absolute local Path, or for object storage an etils Path, which has the same methods.

    Object storage is never resolved as if it were local.

    Raises:
      CheckpointError: a URL that went through pathlib and lost a slash, or a storage whose driver
        is not installed.
    """
    text = os.fspath(path)
    if _FLATTENED.match(text):
        raise CheckpointError(
            f"{text}: pathlib has taken a slash out of this URL; pass it as text: "
            f"{text.replace(':/', '://', 1)}"
        )
    if not is_remote(text):
        return Path(text).expanduser().absolute()
    from etils import epath  # type: ignore[import-untyped]

    try:
        remote = cast(Path, epath.Path(text))
        remote.exists()
    except Exception as error:
        unknown = isinstance(error, KeyError)
        reason = "unknown scheme" if unknown else (str(error).splitlines() or [repr(error)])[0]
        raise CheckpointError(f"{text}: object storage cannot be reached ({reason})") from None
    return remote


def check_regular(path: Path) -> None:
    """Refuse what is there and is no file of bytes: a pipe or a device, which may never end.

    Raises:
      CheckpointError: it is a directory, a pipe, a device or a socket.
    """
    if is_remote(path):
        return
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: cannot be read (it is no regular file)")


def is_own(path: Path, directory: Path) -> bool:
    """Whether a file is a regular one that lies in `directory`, or in the cache that it is of.

    Links are followed where they stay inside, or lead to the blobs beside the snapshot that
    `directory` is in the hub's cache:

        models--org--name/snapshots/<commit>/LICENSE -> ../../blobs/<hash>
    """
    if not path.is_file():
        return False
    if is_remote(path):
        return True
    real, home = path.resolve(), directory.resolve()
    if real.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"


def size_of(path: Path) -> int:
    """Bytes of a file, here or in object storage."""
    status: Any = path.stat()
    return int(status.length if hasattr(status, "length") else status.st_size)


def changed_at(path: Path) -> int:
    """When a file was last changed, nanoseconds since 1970; 0 where a storage does not say."""
    status: Any = path.stat()
    if hasattr(status, "st_mtime_ns"):
        return int(status.st_mtime_ns)
    return int((getattr(status, "mtime", None) or 0) * 10**9)
