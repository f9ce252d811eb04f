"""Lines to a stream instead of a journal: nothing is kept, so nothing can be gone on with."""

from typing import BinaryIO

from tpuinfer.offline.index import Index
from tpuinfer.offline.task import BatchError, Task


class Printed:
    """A ledger that only prints, answers and errors alike."""

    def __init__(self, stream: BinaryIO, index: Index) -> None:
        self._stream, self._index = stream, index
        self._offset = 0

    def is_done(self, position: int) -> bool:
        return self._index.is_done(position)

    def record(self, task: Task, line: bytes, ok: bool) -> None:
        """Write a line at once.

        Raises:
          BrokenPipeError: the reader has left. BatchError: it cannot be written.
        """
        try:
            self._stream.write(line + b"\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise BatchError(f"stdout cannot be written ({error.strerror})") from error
        if ok:
            self._index.mark(task.position, offset=self._offset, length=len(line))
        else:
            self._index.mark_failed(task.position)
        self._offset += len(line) + 1

    def sort(self) -> None:
        raise BatchError("what was printed cannot be sorted: give --output a file")

    def flush(self) -> None:
        """Every line was flushed when it was written."""

    def close(self) -> None:
        """The stream is the caller's."""
