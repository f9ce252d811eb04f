"""The file of records: a line a cell, durable when it is written, and written by one sweep only."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tpuinfer.errors import ConfigError
from tpuinfer.experiment.record import Record
from tpuinfer.offline.disk import open_alone, sync_folder


class Journal:
    r"""Records by key, and the file they stand in. Use as a context manager.

    A kill may leave the last line torn: it is cut off, and its cell runs again.

        {"version": 1, "key": "a", ...}\n{"version": 1, "ke
        0                                 torn: cut here when opened
    """

    def __init__(self, path: str | Path) -> None:
        """Open or make the file, read it, and keep other sweeps out until it is closed.

        Raises:
          ConfigError: it cannot be made, another sweep has it, or it holds something else.
        """
        self.path = Path(path).expanduser()
        self.folder = self.path.with_name(f"{self.path.name}.logits")
        self._handle = _opened(self.path)
        try:
            text = _bytes(self._handle)
            whole = text[: text.rfind(b"\n") + 1]
            _refuse_another_file(self.path, text)
            self._records = {
                record.key: record for record in _read(self.path, whole.decode(), self.folder)
            }
            if len(whole) < len(text):
                os.ftruncate(self._handle, len(whole))
        except UnicodeDecodeError as error:
            self.close()
            raise ConfigError(
                f"{self.path}: is no record of a sweep; give another --out"
            ) from error
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> Record | None:
        return self._records.get(key)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Write a record; when this returns, no kill or power loss takes it.

        Raises:
          ConfigError: the disk is full or fails.
        """
        line = json.dumps(record.as_json(), allow_nan=False) + "\n"
        try:
            left = memoryview(line.encode())
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: a record could not be written ({error.strerror}); those before it "
                "are safe: make room and run the same command again"
            ) from error
        self._records[record.key] = record

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(path: str | Path) -> list[Record]:
    """The records of a file, in the order of their lines; one that is torn is left out.

    Raises:
      ConfigError: the file cannot be read, or holds something else.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    folder = path.with_name(f"{path.name}.logits")
    whole = text[: text.rfind("\n") + 1]
    return list({record.key: record for record in _read(path, whole, folder)}.values())


def _opened(path: Path) -> int:
    handle = -1
    try:
        handle = open_alone(path, os.O_APPEND)
        sync_folder(path.parent)  # else a power loss may take the file with all its lines
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        if isinstance(error, BlockingIOError):
            raise ConfigError(
                f"{path}: another sweep writes to this file; wait until it ends, or give another "
                "--out"
            ) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise ConfigError(
                f"{path.parent}: is no folder; make it, or give an --out in one that is there"
            ) from None
        raise ConfigError(
            f"{path}: cannot be opened for writing ({error.strerror}); give another --out"
        ) from None
    return handle


def _bytes(handle: int) -> bytes:
    with open(handle, "rb", closefd=False) as file:
        return file.read()


def _refuse_another_file(path: Path, text: bytes) -> None:
    """What does not begin as a record does is not ours to cut."""
    start = b'{"version": '
    if text and not text.startswith(start[: len(text)]):
        raise ConfigError(f"{path}: is no record of a sweep; give another --out")


def _read(path: Path, text: str, folder: Path) -> Iterator[Record]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where}: is no record of a sweep; give another --out") from error
        yield Record.from_json(found, where, folder)
