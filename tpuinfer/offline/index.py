"""Which line has which custom_id, and which lines are done, in memory that hardly grows with them.

Ids are kept as digests in a temporary SQLite file, the places of answers in a temporary file of
fixed records; in memory there are two bits a line. Both files have no name: a kill leaves nothing.
"""

import os
import sqlite3
import struct
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Protocol

from tpuinfer.offline.task import BatchError, PassingError, Task

_SHOWN = 3
"""Duplicates that an error names."""

_DIGEST_BYTES = 16
"""2**64 ids are needed for two of them to share a digest by chance."""

_PLACE = struct.Struct("<QQ")
_PLACES_READ = 2**16
_CACHE_KIB = 16 * 1024

_PRAGMAS = (
    "journal_mode = OFF",  # a build that fails is thrown away
    "synchronous = OFF",
    "locking_mode = EXCLUSIVE",
    "temp_store = FILE",  # sorting spills to disk
    f"cache_size = -{_CACHE_KIB}",
)
_SORTED = """
INSERT OR IGNORE INTO keys SELECT key, position FROM staged ORDER BY key, position
"""
_DUPLICATES = """
SELECT staged.position, keys.position FROM staged JOIN keys USING (key)
WHERE staged.position != keys.position ORDER BY staged.position LIMIT ?
"""


class DuplicateError(BatchError):
    """Two lines with one custom_id: nobody could tell their answers apart.

    Attributes:
      code: as OpenAI's error objects say it. where: the later line's place, "in.jsonl:12".
      line: the number in it.
    """

    code = "duplicate_custom_id"

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        self.where = where
        self.line = int(where.rpartition(":")[2])


class Lines(Protocol):
    """What an index is built from: a `Source`."""

    def tasks(self) -> Iterator[Task]:
        """All lines in order, from the first, each time it is called."""


class Index:
    """Where each line's id stands, and what became of the line. One thread at a time.

    A line is answered, failed (it has an error that is kept), or neither; an answer outweighs an
    error, whichever was marked first.

    Attributes:
      done: lines that are answered. failed: lines that have an error and no answer.
    """

    def __init__(self, database: sqlite3.Connection, lines: int) -> None:
        self._database = database
        self._lines = lines
        self._answered = bytearray(-(-lines // 8))
        self._failed = bytearray(-(-lines // 8))
        self._places = _nameless_file()
        self._closed = weakref.finalize(self, _close, database, self._places)
        self.done = 0
        self.failed = 0

    @classmethod
    def build(cls, source: Lines) -> "Index":
        """Reads all lines once.

        Raises:
          DuplicateError: a custom_id that two lines have; the first few of such are named.
          BatchError: the lines cannot be read.
          PassingError: there is no room for temporary files.
        """
        database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            lines, unique = _fill(database, source.tasks())
            if unique < lines:
                raise _duplicates(database, source, lines - unique)
            database.execute("DROP TABLE staged")
            return cls(database, lines)
        except BaseException as error:
            database.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise _no_room(error) from None
            raise

    def __len__(self) -> int:
        return self._lines

    def position_of(self, custom_id: str) -> int | None:
        """The line that has this id."""
        return self._find(_id_key(custom_id))

    def position_at(self, where: str) -> int | None:
        """The line at this place ("in.jsonl:12"), of those without an id that can be read."""
        return self._find(_place_key(where))

    def mark(self, position: int, *, offset: int, length: int) -> None:
        """The line is answered, and its answer is `length` bytes at `offset` of the journal.

        Raises:
          ValueError: it was answered before.
          PassingError: there is no room for the temporary file.
        """
        if self.is_answered(position):
            raise ValueError(f"line {position} is answered already")
        self.move(position, offset=offset, length=length)
        if self.is_failed(position):
            self._failed[position >> 3] &= ~(1 << (position & 7))
            self.failed -= 1
        self._answered[position >> 3] |= 1 << (position & 7)
        self.done += 1

    def move(self, position: int, *, offset: int, length: int) -> None:
        """The answer of a line that is answered lies there now; `in_order` may be under way.

        Raises:
          PassingError: there is no room for the temporary file.
        """
        try:
            os.pwrite(self._places, _PLACE.pack(offset, length), position * _PLACE.size)
        except OSError as error:
            raise _no_room(error) from None

    def mark_failed(self, position: int) -> None:
        """The line has an error that is kept; nothing changes if it is answered, or failed."""
        if self.is_done(position):
            return
        self._failed[position >> 3] |= 1 << (position & 7)
        self.failed += 1

    def is_done(self, position: int) -> bool:
        """Whether nothing is left to do: the line is answered, or has failed."""
        byte, bit = position >> 3, 1 << (position & 7)
        return bool((self._answered[byte] | self._failed[byte]) & bit)

    def is_answered(self, position: int) -> bool:
        return bool(self._answered[position >> 3] & 1 << (position & 7))

    def is_failed(self, position: int) -> bool:
        """Whether the line has an error and no answer."""
        return bool(self._failed[position >> 3] & 1 << (position & 7))

    def in_order(self) -> Iterator[tuple[int, int, int]]:
        """(position, offset, length) of each answered line, in the order of the input."""
        for first in range(0, self._lines, _PLACES_READ):
            places = os.pread(
                self._places, _PLACES_READ * _PLACE.size, first * _PLACE.size
            )  # what lies beyond the last answer was never written: there is no more to read
            for position in range(first, first + len(places) // _PLACE.size):
                if self.is_answered(position):
                    yield position, *_PLACE.unpack_from(places, (position - first) * _PLACE.size)

    def close(self) -> None:
        """Give the temporary files back; safe to call again."""
        self._closed()

    def _find(self, key: bytes) -> int | None:
        query = "SELECT position FROM keys WHERE key = ?"
        row = self._database.execute(query, (key,)).fetchone()
        return None if row is None else int(row[0])


def _fill(database: sqlite3.Connection, tasks: Iterator[Task]) -> tuple[int, int]:
    """(lines, ids that differ): ids as they come, then sorted in one go, as a B-tree likes them."""
    for pragma in _PRAGMAS:
        database.execute(f"PRAGMA {pragma}")
    database.execute("BEGIN")
    database.execute("CREATE TABLE staged (position INTEGER PRIMARY KEY, key BLOB NOT NULL)")
    database.execute(
        "CREATE TABLE keys (key BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID"
    )
    lines = database.executemany("INSERT INTO staged VALUES (?, ?)", _keys(tasks)).rowcount
    unique = database.execute(_SORTED).rowcount
    database.execute("COMMIT")
    return max(lines, 0), max(unique, 0)


def _keys(tasks: Iterable[Task]) -> Iterator[tuple[int, bytes]]:
    for task in tasks:
        custom_id = task.custom_id
        yield task.position, _place_key(task.where) if custom_id is None else _id_key(custom_id)


def _id_key(custom_id: str) -> bytes:
    text = custom_id.encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=_DIGEST_BYTES, person=b"id").digest()


def _place_key(where: str) -> bytes:
    text = where.encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=_DIGEST_BYTES, person=b"place").digest()


def _duplicates(database: sqlite3.Connection, source: Lines, count: int) -> DuplicateError:
    """Names the first few; their lines are read once more, for places are kept nowhere."""
    pairs: list[tuple[int, int]] = database.execute(_DUPLICATES, (_SHOWN,)).fetchall()
    wanted = {position for pair in pairs for position in pair}
    found: dict[int, Task] = {}
    for task in source.tasks():
        if task.position in wanted:
            found[task.position] = task
            if len(found) == len(wanted):
                break
    named = [
        f"{found[later].custom_id!r} in {found[first].where} and {found[later].where}"
        for later, first in pairs
    ]
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    message = f"custom_id is not unique: {', '.join(named)}{more}; each line needs one of its own"
    return DuplicateError(message, where=found[pairs[0][0]].where)


def _nameless_file() -> int:
    """A descriptor of a temporary file that is gone once it is closed."""
    descriptor, path = tempfile.mkstemp(prefix="tpuinfer-")
    os.unlink(path)
    return descriptor


def _close(database: sqlite3.Connection, places: int) -> None:
    database.close()
    os.close(places)


def _no_room(error: Exception) -> PassingError:
    return PassingError(
        f"the index of the input cannot be kept ({error}): it needs about 100 bytes a line in the "
        "folder for temporary files; free some space there, or name another one with TMPDIR"
    )
