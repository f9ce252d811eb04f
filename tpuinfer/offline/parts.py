"""The journal where files cannot grow: numbered objects, each written whole."""

import contextlib
import logging
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tpuinfer.checkpoint.paths import is_remote, size_of
from tpuinfer.offline.disk import place, put, put_stream, reason
from tpuinfer.offline.flusher import Flusher
from tpuinfer.offline.journal import Journal
from tpuinfer.offline.task import BatchError

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"part-(\d{5,})\.jsonl")
_SORTED = "sorted.jsonl"
_END = b"\n"
_OFFSET_BITS = 40  # of an int that holds (part, offset); an object is smaller than 1 TiB
_MOST_WAITING = 64 << 20  # bytes in memory, beyond which `append` waits for the storage
_PAUSES = (0.5, 2.0, 8.0)  # seconds before a part is tried again


class Parts:
    """A folder of part-00000.jsonl, part-00001.jsonl, ...: a `Journal` on object storage.

    Lines wait in memory until their part is written, at most `sync_lines` of them or
    `sync_seconds` each: what waits is what a kill takes, and those requests run again. A part is
    there whole or not at all, since object storage writes objects so.

    A part that is there is never replaced, so of two that write here, since one has lost its lock
    without knowing it, the one that comes later to a number ends:

        a opens, is frozen | b opens, writes part-00003 | a wakes: part-00003 is there, a ends

    An offset is (part << 40) + the offset within it.
    """

    def __init__(self, path: Path, parts: list[int], *, sync_lines: int, sync_seconds: float):
        """Takes the folder and the numbers of its parts; `open` finds them."""
        self.path = path
        self._parts = parts
        self._part_lines = sync_lines
        self._lock = threading.Lock()
        self._number = max(parts, default=-1) + 1  # of the part that `append` fills
        self._filling: list[bytes] = []
        self._size = 0
        self._ready: deque[tuple[int, bytes]] = deque()
        self._waiting = 0
        self._spool: BinaryIO | None = None  # all parts on this machine, for `read`
        self._starts: dict[int, int] = {}
        self._flusher = Flusher(
            self._write_ready, lines=sync_lines, seconds=sync_seconds, name=f"parts {path.name}"
        )

    @classmethod
    def open(
        cls, path: str | Path, *, sync_lines: int = 1000, sync_seconds: float = 10.0
    ) -> "Parts":
        """Opens the folder, which on object storage need not be there.

        Args:
          sync_lines, sync_seconds: the most lines that a part has, and the longest that one waits.

        Raises:
          BatchError: it cannot be reached or listed.
        """
        folder = place(path)
        return cls(folder, _numbers(folder), sync_lines=sync_lines, sync_seconds=sync_seconds)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line without its end) of each line of each part, in their order.

        Raises:
          BatchError: a part cannot be read, or its last line is torn.
        """
        for number in list(self._parts):
            path = self._at(number)
            offset = number << _OFFSET_BITS
            try:
                with path.open("rb") as file:
                    while line := file.readline():
                        if not line.endswith(b"\n"):
                            raise BatchError(
                                f"{path}: its last line is torn, which no writer of parts does; "
                                "delete this part and run the command again"
                            )
                        yield offset, line[:-1]
                        offset += len(line)
            except BatchError:
                raise
            except Exception as error:
                raise BatchError(f"{path}: cannot be read ({reason(error)})") from None

    def append(self, line: bytes) -> int:
        """Takes one line, given without its end, and says at which offset it will lie.

        Waits for the storage only where more than 64 MiB wait for it.

        Raises:
          BatchError: a part could not be written, now or before.
        """
        if b"\n" in line:
            raise ValueError("a line of a journal holds no line break")
        self._flusher.check()
        with self._lock:
            if len(self._filling) >= self._part_lines:
                self._close_part()
            offset = (self._number << _OFFSET_BITS) + self._size
            self._filling.append(line + b"\n")
            self._size += len(line) + 1
            self._waiting += len(line) + 1
            crowded = self._waiting > _MOST_WAITING
        self._flusher.added()
        if crowded:
            self._flusher.flush()
        return offset

    def read(self, offset: int, length: int) -> bytes:
        """The line of `length` bytes at `offset`, as `append` and `lines` told them.

        The first call fetches all parts into a temporary file.

        Raises:
          BatchError: no such line is there, or the parts cannot be read.
        """
        if self._spool is None:
            self._spool = self._fetch()
        number, within = divmod(offset, 1 << _OFFSET_BITS)
        self._spool.seek(self._starts.get(number, 0) + within)
        found = self._spool.read(length + 1)
        if number not in self._starts or len(found) != length + 1 or not found.endswith(b"\n"):
            raise BatchError(
                f"{self._at(number)}: the line at byte {within} is not there any more; something "
                "else has written to these parts: run the command again"
            )
        return found[:-1]

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Puts `lines`, given without their ends, in the place of all parts, as one part.

        The new part is written before the old ones are deleted: a kill between the two leaves
        lines twice, the later ones the right ones. Offsets told before are void.

        Raises:
          BatchError: the storage fails.
        """
        self.flush()
        old = list(self._parts)
        try:
            with tempfile.TemporaryFile() as spool:
                for line in lines:
                    spool.write(line)
                    spool.write(b"\n")
                if spool.tell():
                    _refuse_taken(path := self._at(self._number))
                    put_stream(path, spool)
                    self._parts.append(self._number)
                    self._number += 1
            for number in old:
                self._at(number).unlink()
                self._parts.remove(number)
        except BatchError:
            raise
        except Exception as error:
            raise BatchError(
                f"{self.path}: could not be rewritten ({reason(error)}); no line is lost: run the "
                "same command again"
            ) from None
        self._forget_spool()

    def put_sorted(self, lines: Iterable[bytes], size: int) -> None:
        """Writes `lines`, of `size` bytes in all with their ends, as sorted.jsonl beside the parts.

        The parts stay the journal. Where it is there in this size nothing is done: a journal of
        answers only grows.

        Raises:
          BatchError: the storage fails.
        """
        path = self.path / _SORTED
        try:
            if path.exists() and size_of(path) == size:
                return
            with tempfile.TemporaryFile() as spool:
                for line in lines:
                    spool.write(line)
                    spool.write(b"\n")
                put_stream(path, spool)
        except BatchError:
            raise
        except Exception as error:
            raise BatchError(
                f"{path}: could not be written ({reason(error)}); the parts are as they were: run "
                "the same command again"
            ) from None

    def flush(self) -> None:
        """Waits until all lines are in parts.

        Raises:
          BatchError: a part could not be written, now or before.
        """
        self._flusher.flush()

    def close(self) -> None:
        """Writes what waits; closing twice is closing once.

        Raises:
          BatchError: a part could not be written, now or before.
        """
        self._forget_spool()
        self._flusher.close()

    def _at(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.jsonl"

    def _close_part(self) -> None:
        """Begins the next part; the caller holds the lock."""
        self._ready.append((self._number, b"".join(self._filling)))
        self._filling, self._size = [], 0
        self._number += 1

    def _write_ready(self) -> None:
        """Writes what waits; runs on the flusher's thread."""
        with self._lock:
            if self._filling:
                self._close_part()
        while self._ready:
            number, data = self._ready[0]
            self._write(number, data)
            self._parts.append(number)
            with self._lock:
                self._ready.popleft()
                self._waiting -= len(data)
            self._forget_spool()

    def _write(self, number: int, data: bytes) -> None:
        path, free = self._at(number), False
        for pause in _PAUSES:
            try:
                free = free or _refuse_taken(path)
                put(path, data)
            except BatchError:
                raise
            except Exception as error:
                _LOG.warning("%s: not written (%s); again in %g s", path, reason(error), pause)
                time.sleep(pause)
            else:
                return
        try:
            free = free or _refuse_taken(path)
            put(path, data)
        except BatchError:
            raise
        except Exception as error:
            if free:
                with contextlib.suppress(Exception):
                    path.unlink()  # whatever a driver may have left of it
            raise BatchError(
                f"{path}: could not be written ({reason(error)}); the parts before it are safe, "
                f"its {data.count(_END):,} lines are not: see to the storage and run the same "
                "command again"
            ) from None

    def _fetch(self) -> BinaryIO:
        """A temporary file of all parts, one behind the other; `_starts` says where each begins."""
        self.flush()
        self._starts = {}
        with contextlib.ExitStack() as stack:
            spool: BinaryIO = stack.enter_context(tempfile.TemporaryFile())
            for offset, line in self.lines():
                self._starts.setdefault(offset >> _OFFSET_BITS, spool.tell())
                spool.write(line)
                spool.write(b"\n")
            stack.pop_all()
        return spool

    def _forget_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def open_journal(
    path: str, *, sync_lines: int | None = None, sync_seconds: float | None = None
) -> Journal | Parts:
    """The journal at `path`: a file of this machine, or a folder of parts in object storage.

    Args:
      sync_lines, sync_seconds: how much may be lost with the machine; None is the kind's own:
        64 lines or 1 second here, 1000 lines or 10 seconds in object storage.

    Raises:
      BatchError: it cannot be opened.
    """
    bounds: dict[str, int | float] = {}
    if sync_lines is not None:
        bounds["sync_lines"] = sync_lines
    if sync_seconds is not None:
        bounds["sync_seconds"] = sync_seconds
    return (Parts if is_remote(path) else Journal).open(path, **bounds)  # type: ignore[arg-type]


def holds_lines(path: str) -> bool:
    """Whether there is a journal at `path` with anything in it; nothing is made or changed.

    Raises:
      BatchError: it cannot be reached.
    """
    if is_remote(path):
        return bool(_numbers(place(path)))
    file = place(path)
    try:
        return file.exists() and (not file.is_file() or file.stat().st_size > 0)
    except OSError as error:
        raise BatchError(f"{path}: cannot be read ({reason(error)})") from None


def _refuse_taken(path: Path) -> bool:
    """True of a part that is not there.

    Raises:
      BatchError: it is, so another one writes here.
      Exception: whatever the driver of an object storage raises.
    """
    if path.exists():
        raise BatchError(
            f"{path}: another batch has written this part, and it stays; the lines for it are not "
            "written: run the same command again when no other one runs"
        )
    return True


def _numbers(folder: Path) -> list[int]:
    """The numbers of the parts in a folder, ascending; none where there is no folder."""
    try:
        if not is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except Exception as error:
        raise BatchError(f"{folder}: cannot be listed ({reason(error)})") from None
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
