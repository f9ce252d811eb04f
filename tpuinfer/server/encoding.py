"""The one thread that runs an encoder: what several requests ask meanwhile goes in one batch."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.server.failures import EngineDeadError, NotReadyError

_log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Rows = Sequence[Sequence[int]]

MOST_AT_ONCE = 256
"""Texts that go to the encoder in one call; the others wait for the next one."""

_BEHIND_AT_ONCE = 64
"""The same of background texts: what comes meanwhile waits for no more than these."""


class Embedder(Protocol):
    """What the thread asks of an encoder."""

    limit: int

    def tokenise(self, texts: Sequence[str | Sequence[int]], called: str) -> list[list[int]]: ...

    def stream(self, texts: Iterable[Sequence[int]]) -> Iterator[NDArray[np.float32]]: ...


class _Ask:
    """One request's texts, and the vectors they have so far."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.vectors: list[NDArray[np.float32]] = []
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Vectors] = self.loop.create_future()


class EncoderThread:
    """Batches across requests, in the order they came; a large one does not hold up the others.

    What is asked in the background is encoded while nothing else waits.

    Attributes:
      limit: tokens a text may have. width: numbers in a vector.
    """

    def __init__(self, embedder: Embedder, *, width: int, max_waiting: int = 4096) -> None:
        """`max_waiting`: texts that may wait, unless they are of one request."""
        self.limit = embedder.limit
        self.width = width
        self._embedder = embedder
        self._most = max_waiting
        self._changed = threading.Condition()
        self._asks: deque[_Ask] = deque()
        self._behind: deque[_Ask] = deque()
        self._running = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for a vector."""
        with self._changed:
            return not self._asks and not self._behind and not self._running

    @property
    def failure(self) -> Exception | None:
        """Why no text can be taken any more."""
        return self._failure

    def tokenise(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """The token ids of each text; from any thread. Raises RequestError for one too long."""
        return self._embedder.tokenise(texts, "input")

    async def embed(self, rows: Rows, *, background: bool = False) -> Vectors:
        """One vector for each row of token ids: [len(rows), width].

        Args:
          background: all others go first, however long that takes.

        Raises:
          QueueFullError: too many texts wait.
          NotReadyError, EngineDeadError: the encoder stops, or failed.
        """
        ask = _Ask(rows)
        with self._changed:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            queue = self._behind if background else self._asks
            waiting = sum(len(one.rows) for one in queue)
            if queue and waiting + len(rows) > self._most:
                raise QueueFullError(
                    f"{waiting} texts wait to be encoded and at most {self._most} may: try again"
                )
            queue.append(ask)
            self._changed.notify()
        return await ask.done

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after the batch it is in; who waits gets an error."""
        self._fail(NotReadyError("the server is stopping"))
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while batch := self._next():
                vectors = list(self._embedder.stream([row for _, rows in batch for row in rows]))
                self._hand_out(batch, vectors)
        except Exception as error:
            _log.exception("the encoder died")
            self._fail(EngineDeadError(f"the encoder died: {type(error).__name__}"))

    def _next(self) -> list[tuple[_Ask, Rows]]:
        """What goes in the next call: a fair part of every request that waits; empty: stop.

        Those in the background have a part where there are no others. With more requests than
        texts in a call, those that had no part are first the next time.
        """
        with self._changed:
            self._running = 0
            self._drop_gone()
            while not self._asks and not self._behind and self._failure is None:
                self._changed.wait()
                self._drop_gone()
            if self._failure is not None:
                return []
            queue, room = (
                (self._asks, MOST_AT_ONCE) if self._asks else (self._behind, _BEHIND_AT_ONCE)
            )
            live = list(queue)
            batch: list[tuple[_Ask, Rows]] = []
            for left, ask in zip(range(len(live), 0, -1), live, strict=True):
                share = max(1, room // left) if room else 0
                rows = ask.rows[len(ask.vectors) : len(ask.vectors) + share]
                room -= len(rows)
                if rows:
                    batch.append((ask, rows))
            queue.rotate(-len(batch))
            self._running = len(batch)
        return batch

    def _drop_gone(self) -> None:
        """Keep the requests that somebody waits for."""
        self._asks = deque(ask for ask in self._asks if not ask.done.cancelled())
        self._behind = deque(ask for ask in self._behind if not ask.done.cancelled())

    def _hand_out(self, batch: Sequence[tuple[_Ask, Rows]], vectors: list[Any]) -> None:
        at = 0
        for ask, rows in batch:
            ask.vectors += vectors[at : at + len(rows)]
            at += len(rows)
            if len(ask.vectors) == len(ask.rows):
                with self._changed:
                    for queue in (self._asks, self._behind):
                        if ask in queue:
                            queue.remove(ask)
                self._settle(ask, np.stack(ask.vectors))

    def _fail(self, failure: Exception) -> None:
        with self._changed:
            self._failure = self._failure or failure
            asks = [*self._asks, *self._behind]
            self._asks.clear()
            self._behind.clear()
            self._changed.notify()
        for ask in asks:
            self._settle(ask, self._failure)

    @staticmethod
    def _settle(ask: _Ask, outcome: Vectors | Exception) -> None:
        def settle() -> None:
            if ask.done.done():
                return
            if isinstance(outcome, Exception):
                ask.done.set_exception(outcome)
            else:
                ask.done.set_result(outcome)

        try:
            ask.loop.call_soon_threadsafe(settle)
        except RuntimeError:
            _log.debug("the event loop closed; vectors dropped")
