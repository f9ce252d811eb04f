"""Whole lines at the end of a file: what a batch has answered, kept whatever happens.

A line is one write, so that a kill leaves it there or not; a machine that stops may leave the
last one torn, which `Journal.open` cuts off. A thread makes lines durable by fsync: what a power
loss takes is at most the lines of `sync_lines` or `sync_seconds`.
"""

import fcntl
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from tpuinfer.offline.disk import NEW, reason, remove, sync_folder
from tpuinfer.offline.flusher import Flusher
from tpuinfer.offline.task import BatchError

_LOG = logging.getLogger(__name__)
_BLOCK = 1 << 16


class Journal:
    r"""An append-only file of lines. One thread writes; another process never does: see `Lock`.

    Offsets are bytes from the file's beginning to a line's.

        {"custom_id":"a"}\n{"custom_id":"b"}\n{"custo
        0                  19                 38        torn: cut at 38 when opened
    """

    def __init__(self, path: Path, handle: int, *, sync_lines: int, sync_seconds: float) -> None:
        """Takes an open file whose last line is whole; `open` is the way to one."""
        self.path = path
        self._handle = handle
        self._end = os.fstat(handle).st_size
        self._lines = self._safe = 0  # appended here; and of them, durable
        self._error: str | None = None
        self._closed = False
        self._flusher = Flusher(
            self._sync, lines=sync_lines, seconds=sync_seconds, name=f"fsync {path.name}"
        )

    @classmethod
    def open(
        cls, path: str | Path, *, sync_lines: int = 64, sync_seconds: float = 1.0
    ) -> "Journal":
        """Opens or makes the file, and cuts off a torn last line.

        Args:
          sync_lines, sync_seconds: an fsync is due when so many lines have been written since the
            last one, or the first of them is so old.

        Raises:
          BatchError: it cannot be opened, is no regular file, or is open in another journal.
        """
        path = Path(os.path.realpath(path))
        handle = -1
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(0, "it is no regular file")
            _claim(path, handle)
            path.with_name(path.name + NEW).unlink(missing_ok=True)
            _cut_torn(path, handle)
            sync_folder(path.parent)
            return cls(path, handle, sync_lines=sync_lines, sync_seconds=sync_seconds)
        except (OSError, BatchError) as error:
            if handle >= 0:
                os.close(handle)
            if isinstance(error, BatchError):
                raise
            raise BatchError(
                f"{path}: cannot be opened for writing ({reason(error)}); give a path in a folder "
                "that exists and may be written to"
            ) from None

    @property
    def size(self) -> int:
        """Bytes of all lines, with their ends."""
        return self._end

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line without its end) of each line there is now, from the first on.

        Raises:
          BatchError: the file cannot be read.
        """
        end, offset = self._end, 0
        try:
            with open(self.path, "rb") as file:
                while offset < end and (line := file.readline()):
                    yield offset, line.removesuffix(b"\n")
                    offset += len(line)
        except OSError as error:
            raise BatchError(f"{self.path}: cannot be read ({reason(error)})") from None

    def append(self, line: bytes) -> int:
        """Writes one line, given without its end, and says at which offset it lies.

        When this returns the line outlives this process; the machine, after the next fsync.

        Raises:
          BatchError: it could not be written whole (what of it was, is cut off again), an fsync
            failed, or either happened before.
        """
        if b"\n" in line:
            raise ValueError("a line of a journal holds no line break")
        self._check()
        rest = memoryview(line + b"\n")
        try:
            while rest:  # once, where nothing is wrong; what is wrong shows at the second write
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            self._fail(error)
        offset = self._end
        self._end += len(line) + 1
        self._lines += 1
        self._flusher.added()
        return offset

    def read(self, offset: int, length: int) -> bytes:
        """The line of `length` bytes at `offset`, as `append` and `lines` told them.

        Raises:
          BatchError: no such line is there: somebody else has changed the file.
        """
        try:
            found = os.pread(self._handle, length + 1, offset)
        except OSError as error:
            raise BatchError(f"{self.path}: cannot be read ({reason(error)})") from None
        if len(found) != length + 1 or not found.endswith(b"\n"):
            raise BatchError(
                f"{self.path}: the line at byte {offset} is not there any more; something else "
                "has written to this file: run the command again"
            )
        return found[:-1]

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Puts `lines`, given without their ends, in the place of all that is there.

        They may be read from this journal. The file holds what it held until the new lines are
        durable, and then these: never something between the two. Offsets told before are void.

        Raises:
          BatchError: they could not be written; the file holds what it held.
        """
        self.flush()
        new = self.path.with_name(self.path.name + NEW)
        handle = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            handle = os.open(new, flags, 0o644)
            _claim(new, handle)
            os.fchmod(handle, stat.S_IMODE(os.fstat(self._handle).st_mode))
            with open(handle, "wb", buffering=1 << 20, closefd=False) as file:
                for line in lines:
                    file.write(line)
                    file.write(b"\n")
            os.fsync(handle)
            os.replace(new, self.path)
        except BaseException as error:
            if handle >= 0:
                os.close(handle)
                remove(new)
            if not isinstance(error, OSError):
                raise
            raise BatchError(
                f"{self.path}: could not be rewritten ({reason(error)}); it is as it was: make "
                "room on the disk and run the same command again"
            ) from None
        os.dup2(handle, self._handle, inheritable=False)
        os.close(handle)
        self._end, self._safe = os.fstat(self._handle).st_size, self._lines
        try:
            sync_folder(self.path.parent)
        except OSError as error:
            self._error = self._words("made durable", error, self._safe)
            raise BatchError(self._error) from None

    def flush(self) -> None:
        """Waits until all lines are durable.

        Raises:
          BatchError: an fsync or a write failed, now or before.
        """
        self._check()
        self._flusher.flush()

    def close(self) -> None:
        """Makes all lines durable and closes the file; closing twice is closing once.

        Raises:
          BatchError: an fsync failed, now or before.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._flusher.close()
        finally:
            os.close(self._handle)
            self._handle = -1

    def _check(self) -> None:
        if self._error is not None:
            raise BatchError(self._error)

    def _sync(self) -> None:
        lines = self._lines  # before the fsync: what is written during it may miss it
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise BatchError(self._words("made durable", error, self._safe)) from None
        self._safe = lines

    def _fail(self, error: OSError) -> None:
        """Cuts off what was written of a line, and refuses this and all later ones."""
        try:
            os.ftruncate(self._handle, self._end)
        except OSError:
            _LOG.warning("%s: its last line is torn; the next start cuts it off", self.path)
        self._error = self._words("written", error, self._lines)
        raise BatchError(self._error) from None

    def _words(self, verb: str, error: OSError, safe: int) -> str:
        """What to say of a line that could not be written, where `safe` lines of this run are."""
        return (
            f"{self.path}: a line could not be {verb} ({reason(error)}); {safe:,} lines of this "
            "run and all before them are safe: make room, or see to the disk, and run the same "
            "command again"
        )


def _claim(path: Path, handle: int) -> None:
    """Refuses a file that another journal has open, were it one that shares only this file.

    Two would not disturb each other's lines, but a rewrite by one would drop the other's.

    Raises:
      BatchError: another one has it, or has just put a new file in its place.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return
    except OSError as error:
        if not isinstance(error, BlockingIOError):
            return  # a disk without flock, where `Lock` is refused
    raise BatchError(
        f"{path}: another batch writes to this file; wait until it ends, or give each its own"
    )


def _cut_torn(path: Path, handle: int) -> None:
    """Cuts off what stands behind the last whole line.

    Torn are a line without its end, zeros (a file whose length outlived its content), and a line
    that holds a zero, which JSON never does.
    """
    size = os.fstat(handle).st_size
    end = _line_start(handle, size)
    while end and _holds_zero(handle, start := _line_start(handle, end - 1), end):
        end = start
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)
        _LOG.warning(
            "%s: the last line was torn off by a kill or a power loss; its %d bytes are cut, and "
            "its request runs again",
            path,
            size - end,
        )


def _line_start(handle: int, end: int) -> int:
    """Where the line that ends before `end` begins: behind the last line break before it."""
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _holds_zero(handle: int, start: int, end: int) -> bool:
    return any(
        b"\0" in os.pread(handle, min(_BLOCK, end - at), at) for at in range(start, end, _BLOCK)
    )
