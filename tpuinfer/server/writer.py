"""Lines written by a thread of their own: whoever logs never waits for a disk or a pipe."""

import atexit
import logging
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

MOST_WAITING = 2**16
"""Lines that may wait to be written; more are dropped, and counted."""

Make = Callable[[], str]


class Writer:
    """Makes and writes lines in the order they come. `put` may be called from any thread.

    Attributes:
      dropped: lines that there was no room for.
    """

    def __init__(self, write: Callable[[str], None], name: str) -> None:
        self.dropped = 0
        self._write = write
        self._lines: queue.Queue[Make | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close, 1.0)

    def put(self, make: Make) -> None:
        """Write what `make` gives, which is called on the writer's thread."""
        try:
            self._lines.put_nowait(make)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("%s: lines come faster than they are written", self._thread.name)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, for so many seconds at most."""
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        failed = False
        while (make := self._lines.get()) is not None:
            try:
                self._write(make())
            except Exception as error:
                if not failed:
                    _log.error("%s: cannot be written: %s", self._thread.name, type(error).__name__)
                failed = True
