"""A thread that makes lines durable behind the back of the one that writes them."""

import threading
import time
from collections.abc import Callable

from tpuinfer.offline.task import BatchError


class Flusher:
    """Calls `work` on its own thread when `lines` lines wait, or the oldest waits `seconds`.

    What `work` raised is raised again by every later call here, and `work` is not called any
    more: after a failed fsync the kernel may have dropped what it could not write, and a second
    one that succeeds would prove nothing.

    Numbers of lines, counted from the beginning: settled <= added; those between them wait.
    """

    def __init__(
        self, work: Callable[[], None], *, lines: int, seconds: float, name: str = "flusher"
    ) -> None:
        if lines < 1 or seconds < 0:
            raise BatchError(
                f"lines are made durable by {lines} lines or {seconds:g} s: both have to be more "
                f"than nothing; give {max(lines, 1)} and {max(seconds, 1.0):g}"
            )
        self._work = work
        self._lines = lines
        self._seconds = seconds
        self._changed = threading.Condition()
        self._added = 0
        self._settled = 0
        self._wanted = 0  # lines up to here are waited for by a flush
        self._since: float | None = None  # when the oldest that waits was added
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def added(self) -> None:
        """One more line waits.

        Raises:
          BatchError: `work` failed, now or before.
        """
        with self._changed:
            self._check()
            self._added += 1
            if self._since is None:
                self._since = time.monotonic()
                self._changed.notify_all()
            elif self._added - self._settled >= self._lines:
                self._changed.notify_all()

    def check(self) -> None:
        """Raises BatchError where `work` has failed."""
        with self._changed:
            self._check()

    def flush(self) -> None:
        """Waits until all that was added before this call is settled.

        Raises:
          BatchError: `work` failed, now or before.
        """
        with self._changed:
            target = self._added
            self._wanted = max(self._wanted, target)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= target or self._error is not None)
            self._check()

    def close(self) -> None:
        """Flushes and ends the thread; closing twice is closing once.

        Raises:
          BatchError: `work` failed, now or before.
        """
        try:
            self.flush()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise BatchError(str(self._error) or type(self._error).__name__) from self._error

    def _loop(self) -> None:
        while (target := self._next()) is not None:
            failure: Exception | None = None
            try:
                self._work()
            except Exception as error:
                failure = error
            with self._changed:
                self._settled, self._error = (
                    (target, None) if failure is None else (self._settled, failure)
                )
                self._changed.notify_all()
            if failure is not None:
                return

    def _next(self) -> int | None:
        """Waits until there is work, and says up to which line; None when there will be none."""
        with self._changed:
            while not self._due():
                if self._closing:
                    return None
                self._changed.wait(self._patience())
            self._since = None
            return self._added

    def _due(self) -> bool:
        if self._added == self._settled:
            return False
        if self._wanted > self._settled or self._added - self._settled >= self._lines:
            return True
        patience = self._patience()
        return patience is not None and patience <= 0

    def _patience(self) -> float | None:
        """Seconds until the oldest that waits has waited long enough; None if none waits."""
        return None if self._since is None else self._since + self._seconds - time.monotonic()
