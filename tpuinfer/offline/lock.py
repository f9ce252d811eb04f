"""One writer at a time: a lock that a dead process cannot keep."""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tpuinfer.checkpoint.paths import is_remote
from tpuinfer.offline.disk import open_alone, place, put, reason
from tpuinfer.offline.task import BatchError

_LOG = logging.getLogger(__name__)
_STALE_SECONDS = 120.0  # an object that has not been touched for so long is nobody's
_BEAT_SECONDS = 20.0
_SETTLE_SECONDS = 2.0  # for two that take it in the same moment to see each other


class Lock:
    """Held from its making until `close`, by one process of all that ask for `path`.

    Here it is a flock on a file that stays when the lock is free, and names who has it. The
    kernel frees it with the process, however that ends. On NFS, flock holds between machines only
    where the mount passes locks on to the server (not with `nolock` or `local_lock=flock`).

    In object storage it is an object that its holder writes again every 20 seconds. Nothing frees
    that when the holder is killed: for two minutes the lock is refused. Two that take it within
    the same moment see each other two seconds later, and one of them withdraws. It guards against
    mistakes, not against clocks that are minutes apart.
    """

    def __init__(self, path: str | Path) -> None:
        """Takes the lock.

        Raises:
          BatchError: somebody has it (the message says who, and since when), or it cannot be made.
        """
        self._hold: _FileLock | _ObjectLock
        self._hold = _ObjectLock(place(path)) if is_remote(path) else _FileLock(place(path))

    def check(self) -> None:
        """Raises BatchError where the lock was lost, which only one in object storage can be."""
        self._hold.check()

    def close(self) -> None:
        """Frees it; closing twice is closing once."""
        self._hold.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _FileLock:
    """A flock on a file of this machine."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        handle = -1
        try:
            handle = open_alone(path)
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_holder()).encode(), 0)
        except OSError as error:
            if handle >= 0:
                os.close(handle)
            if isinstance(error, BlockingIOError):
                raise BatchError(
                    f"{path}: held by {_named(_read(path))}; one writer at a time: wait until it "
                    "ends, or end it"
                ) from None
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise BatchError(
                    f"{path.parent}: is no folder; make it, or give an --output in one that is "
                    "there"
                ) from None
            raise BatchError(
                f"{path}: cannot be locked ({reason(error)}); give a path on a disk that can be "
                "written to and knows flock"
            ) from None
        self._handle = handle

    def check(self) -> None:
        """A flock is never lost."""

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class _ObjectLock:
    """An object with a heartbeat.

    Args:
      clock: seconds since the epoch, the same on all machines that ask.
      sleep: what the settling waits by.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        beat_seconds: float = _BEAT_SECONDS,
    ) -> None:
        self._path = path
        self._clock = clock
        self._beat_seconds = beat_seconds
        self._token = secrets.token_hex(8)
        self._holder = _holder()
        self._lost: str | None = None
        self._closed = threading.Event()
        self._refuse_if_held()
        try:
            self._beat()
        except Exception as error:
            raise BatchError(f"{path}: cannot be written ({reason(error)})") from None
        sleep(_SETTLE_SECONDS)
        self._refuse_if_held()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise BatchError(self._lost)

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # what stays is stale in two minutes
            if _read(self._path).get("token") == self._token:
                self._path.unlink()

    def _refuse_if_held(self) -> None:
        found = _read(self._path)
        age = self._clock() - _seconds(found.get("touched"))
        if found.get("token") == self._token or age > _STALE_SECONDS:
            return
        raise BatchError(
            f"{self._path}: held by {_named(found)}, which was there {max(age, 0):.0f} s ago; one "
            f"writer at a time: if it has ended, wait {_STALE_SECONDS - age:.0f} s or delete this "
            "object"
        )

    def _beat(self) -> None:
        record = {**self._holder, "token": self._token, "touched": self._clock()}
        put(self._path, json.dumps(record).encode())

    def _keep(self) -> None:
        touched = self._clock()
        while not self._closed.wait(self._beat_seconds):
            try:
                found = _read(self._path)
                if found and found.get("token") != self._token:
                    self._lose(f"taken by {_named(found)}")
                    return
                self._beat()
                touched = self._clock()
            except Exception as error:
                _LOG.warning("%s: cannot be written (%s)", self._path, reason(error))
                if self._clock() - touched > _STALE_SECONDS - 2 * self._beat_seconds:
                    self._lose(f"not written for two minutes ({reason(error)})")
                    return

    def _lose(self, why: str) -> None:
        self._lost = (
            f"{self._path}: this lock was {why}; nothing more is written, and what was written "
            "stays: run the same command again when no other one runs"
        )


def _holder() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _read(path: Path) -> dict[str, Any]:
    """What a lock says of its holder; nothing where it is not there or is being written.

    Raises:
      BatchError: the storage cannot be reached.
    """
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    except Exception as error:
        raise BatchError(f"{path}: cannot be read ({reason(error)})") from None
    return found if isinstance(found, dict) else {}


def _named(record: dict[str, Any]) -> str:
    """Its holder for a reader: process 12 on host a since ..."""
    if "pid" not in record:
        return "another process"
    return f"process {record['pid']} on {record.get('host')} since {record.get('since')}"


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
