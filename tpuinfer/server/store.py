"""Files and batches on disk: what survives a restart.

    <folder>/state.sqlite   a row for each file and each batch
    <folder>/files/         what clients sent; a name that ends in .part is an upload under way
    <folder>/batches/<id>/  the journals of a batch: answers and errors

A row is written after the bytes it speaks of, and deleted before them; what was left without a row
by a crash is removed when the store is opened. One process at a time has a folder.
"""

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpuinfer.errors import TpuinferError
from tpuinfer.offline.lock import Lock
from tpuinfer.offline.task import BatchError
from tpuinfer.server.records import BatchObject, BatchRecord, FileObject, FileRecord

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the tables; a folder that another version wrote is refused."""

PART = ".part"

_TABLES = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    purpose TEXT NOT NULL,
    path TEXT NOT NULL,
    shown TEXT NOT NULL
) STRICT;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    status TEXT NOT NULL,
    input TEXT NOT NULL,
    identity TEXT,
    shown TEXT NOT NULL
) STRICT;
CREATE INDEX batches_by_status ON batches (status);
"""
_UPLOADS = "files"
_UPLOAD = re.compile(r"file-[0-9a-f]{32}\.jsonl(\.part)?")
_BATCH = re.compile(r"batch_[0-9a-f]{32}")
_OPEN = "('validating', 'in_progress', 'finalizing', 'cancelling')"
_SEEN = "(:viewer IS NULL OR owner IS NULL OR owner = :viewer)"
"""Whose rows a key may see: its own, and those made when no key was needed."""


class StoreError(TpuinferError):
    """A data folder that cannot be used."""

    exit_code = 10


@dataclass(frozen=True)
class Page:
    """A part of a list: at most `limit` items behind the one whose id is `after`."""

    after: str | None
    limit: int
    descending: bool = True


class Store:
    """The tables and folders of one data folder; its methods may be called from any thread.

    They wait for the disk: an event loop leaves them to a thread. A `viewer` is the name of the
    key that asks; None where no key is needed, which sees everything.

    Attributes:
      folder: where all of it is.
      tally: status -> how many batches have it; kept in memory.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StoreError: another process has the folder, or it cannot be used."""
        self.folder = folder
        self.tally: Mapping[str, int] = {}
        self._turn = threading.Lock()
        try:
            for each in (folder, folder / "files", folder / "batches"):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.closing(Lock(folder / "lock")))
                self._db = stack.enter_context(contextlib.closing(_connected(folder)))
                self._sweep()
                self._count()
                self._closing = stack.pop_all()
        except (OSError, sqlite3.Error, BatchError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StoreError(f"data folder {str(folder)!r} cannot be used: {reason}") from error

    def close(self) -> None:
        """Give the folder back; whatever is called later raises sqlite3.ProgrammingError."""
        with self._turn:
            self._closing.close()

    def path_of(self, record: FileRecord) -> Path:
        """Where a file's bytes are."""
        return self.folder / record.path

    def upload_path(self, file_id: str) -> str:
        """Where a client's file goes, below the folder; while it comes, with `PART` behind."""
        return f"{_UPLOADS}/{file_id}.jsonl"

    def batch_folder(self, batch_id: str) -> Path:
        """Where a batch's journals are; it exists."""
        folder = self.folder / "batches" / batch_id
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def add_file(self, record: FileRecord) -> None:
        """Show a file whose bytes are on disk."""
        with self._writing() as db:
            _insert_file(db, record)

    def file(self, file_id: str, viewer: str | None) -> FileRecord | None:
        rows = self._read(
            f"SELECT shown, owner, path FROM files WHERE id = :id AND {_SEEN}",
            {"id": file_id, "viewer": viewer},
        )
        return _file(rows[0]) if rows else None

    def files(self, page: Page, purpose: str | None, viewer: str | None) -> list[FileRecord] | None:
        """One more than the page has, if there is one; None if there is no file `page.after`."""
        where = f"{_SEEN} AND (:purpose IS NULL OR purpose = :purpose)"
        rows = self._page("shown, owner, path", "files", where, page, viewer, purpose=purpose)
        return None if rows is None else [_file(row) for row in rows]

    def remove_file(self, file_id: str, viewer: str | None) -> str | None:
        """Forget a file and its bytes; the id of the open batch that reads it, which forbids it.

        Raises:
          KeyError: there is no such file.
        """
        with self._writing() as db:
            found = db.execute(
                f"SELECT path FROM files WHERE id = :id AND {_SEEN}",
                {"id": file_id, "viewer": viewer},
            ).fetchone()
            if found is None:
                raise KeyError(file_id)
            query = f"SELECT id FROM batches WHERE input = ? AND status IN {_OPEN}"
            if (reader := db.execute(query, (file_id,)).fetchone()) is not None:
                return str(reader[0])
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            folder = os.path.dirname(found[0])
            query = "SELECT 1 FROM files WHERE path GLOB ?"
            last = folder != _UPLOADS and not db.execute(query, (f"{folder}/*",)).fetchone()
        (self.folder / found[0]).unlink(missing_ok=True)
        if last:  # of a batch's journals: what lies beside them serves nobody any more
            shutil.rmtree(self.folder / folder, ignore_errors=True)
        return None

    def add_batch(self, record: BatchRecord, most: int) -> bool:
        """Keep a new batch; False if `most` of its owner are open already.

        Raises:
          KeyError: its input file has gone in the meantime.
        """
        shown = record.shown
        with self._writing() as db:
            query = f"SELECT count(*) FROM batches WHERE status IN {_OPEN} AND owner IS ?"
            if db.execute(query, (record.owner,)).fetchone()[0] >= most:
                return False
            if not db.execute(
                "SELECT 1 FROM files WHERE id = ?", (shown.input_file_id,)
            ).fetchone():
                raise KeyError(shown.input_file_id)
            values = (shown.id, record.owner, shown.status, shown.input_file_id, record.identity)
            db.execute(
                "INSERT INTO batches (id, owner, status, input, identity, shown) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*values, shown.model_dump_json()),
            )
        self._count()
        return True

    def batch(self, batch_id: str, viewer: str | None = None) -> BatchRecord | None:
        rows = self._read(
            f"SELECT shown, owner, identity FROM batches WHERE id = :id AND {_SEEN}",
            {"id": batch_id, "viewer": viewer},
        )
        return _batch(rows[0]) if rows else None

    def batches(self, page: Page, viewer: str | None) -> list[BatchRecord] | None:
        """One more than the page has, if there is one; None if there is no batch `page.after`."""
        rows = self._page("shown, owner, identity", "batches", _SEEN, page, viewer)
        return None if rows is None else [_batch(row) for row in rows]

    def open_batches(self) -> list[BatchRecord]:
        """Those that have not ended, the oldest first."""
        query = f"SELECT shown, owner, identity FROM batches WHERE status IN {_OPEN}"
        return [_batch(row) for row in self._read(f"{query} ORDER BY number", {})]

    def change(
        self,
        batch_id: str,
        update: Callable[[BatchRecord], BatchRecord],
        files: Sequence[FileRecord] = (),
    ) -> BatchRecord:
        """Put `update(batch)` in the place of a batch, and show `files`: both or neither.

        Neither, if `update` gives back what it was given. A batch that has ended stays so.
        """
        with self._writing() as db:
            query = "SELECT shown, owner, identity FROM batches WHERE id = ?"
            before = _batch(db.execute(query, (batch_id,)).fetchone())
            after = update(before)
            if after is before:
                return before
            assert not before.ended or after.shown.status == before.shown.status, "it has ended"
            for file in files:
                _insert_file(db, file)
            db.execute(
                "UPDATE batches SET status = ?, identity = ?, shown = ? WHERE id = ?",
                (after.shown.status, after.identity, after.shown.model_dump_json(), batch_id),
            )
        if after.shown.status != before.shown.status:
            self._count()
        return after

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _read(self, query: str, values: Mapping[str, Any]) -> list[Any]:
        with self._turn:
            return self._db.execute(query, values).fetchall()

    def _page(
        self, what: str, table: str, where: str, page: Page, viewer: str | None, **values: Any
    ) -> list[Any] | None:
        values |= {"viewer": viewer, "limit": page.limit + 1, "after": page.after}
        if page.after is not None:
            query = f"SELECT number FROM {table} WHERE id = :after AND {_SEEN}"
            if not (found := self._read(query, values)):
                return None
            values["number"] = found[0][0]
            where += f" AND number {'<' if page.descending else '>'} :number"
        order = "DESC" if page.descending else "ASC"
        query = f"SELECT {what} FROM {table} WHERE {where} ORDER BY number {order} LIMIT :limit"
        return self._read(query, values)

    def _count(self) -> None:
        query = "SELECT status, count(*) FROM batches GROUP BY status"
        with self._turn:
            self.tally = Counter(dict(self._db.execute(query).fetchall()))

    def _sweep(self) -> None:
        """Remove what a crash left without a row; of other names nothing is ours."""
        known = {path for (path,) in self._db.execute("SELECT path FROM files")}
        for found in (self.folder / "files").iterdir():
            if _UPLOAD.fullmatch(found.name) and f"files/{found.name}" not in known:
                _log.info("removing %s, which is no file's", found.name)
                found.unlink()
        known = {name for (name,) in self._db.execute("SELECT id FROM batches")}
        for found in (self.folder / "batches").iterdir():
            if _BATCH.fullmatch(found.name) and found.name not in known:
                _log.info("removing the folder %s, which is no batch's", found.name)
                shutil.rmtree(found)


def _connected(folder: Path) -> sqlite3.Connection:
    """The database, with the tables in it. Raises StoreError: another version wrote it."""
    path = folder / "state.sqlite"
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        os.chmod(path, 0o600)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise StoreError(
                f"data folder {str(folder)!r} is of version {version}: this tpuinfer knows "
                f"version {VERSION}; give another --data-dir"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if version == 0:
            database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        database.close()
        raise
    return database


def _insert_file(database: sqlite3.Connection, record: FileRecord) -> None:
    shown = record.shown
    database.execute(
        "INSERT INTO files (id, owner, purpose, path, shown) VALUES (?, ?, ?, ?, ?)",
        (shown.id, record.owner, shown.purpose, record.path, shown.model_dump_json()),
    )


def _file(row: tuple[str, str | None, str]) -> FileRecord:
    shown, owner, path = row
    return FileRecord(FileObject.model_validate_json(shown), owner, path)


def _batch(row: tuple[str, str | None, str | None]) -> BatchRecord:
    shown, owner, identity = row
    return BatchRecord(BatchObject.model_validate_json(shown), owner, identity)
