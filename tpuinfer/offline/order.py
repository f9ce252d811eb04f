"""In which order lines are begun: a bounded window is read ahead, and its longest go first.

    input        | 3 9 1 5 | 2 8 8 1 | ...        (cost of each line)
    begun        | 9 5 3 1 | 8 8 2 1 | ...

While one window is worked off, the next is read on a thread, so that neither file reading nor JSON
stands in the way of answers; two windows are in memory at most. Long lines that begin first do not
end last: with one window for all of the input, the slots run empty together (Graham's bound for
longest-first lists, doi:10.1137/0117039).
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from tpuinfer.offline.task import Task

LINES_EACH = 32
"""Lines of a window for each request that is answered at once."""

WINDOW_BYTES = 2**25
"""Bytes of bodies and rows after which a window is full, whatever its lines."""

_BYTES_A_TOKEN = 4
_UNSAID = 256
"""Tokens that an answer is taken to have where its request does not say."""

_VALUE_BYTES = 64
"""What a value of a row takes beside its characters."""

_LIMITS = ("max_completion_tokens", "max_tokens")


def cost(task: Task) -> float:
    """About how many tokens a line takes, of its prompt and its answers.

    One in error goes before all others: it takes no time, and may be the end of a strict run.
    """
    if task.error is not None:
        return math.inf
    prompt = len(task.body) / _BYTES_A_TOKEN
    return prompt if task.url.endswith("/embeddings") else prompt + _answer_tokens(task.body)


def _answer_tokens(body: bytes) -> float:
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return 0
    if not isinstance(fields, dict):
        return 0
    limits = (_count(fields.get(name)) for name in _LIMITS)
    limit = next((limit for limit in limits if limit is not None), _UNSAID)
    return limit * (_count(fields.get("n")) or 1)


def _held(value: Any) -> int:
    """About how many bytes a value of JSON takes in memory."""
    if isinstance(value, str | bytes):
        return _VALUE_BYTES + len(value)
    if isinstance(value, Mapping):
        return _VALUE_BYTES + sum(_held(name) + _held(one) for name, one in value.items())
    if isinstance(value, list):
        return _VALUE_BYTES + sum(map(_held, value))
    return _VALUE_BYTES


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def read_window(
    tasks: Iterator[Task], skip: Callable[[int], bool], *, lines: int, size: int = WINDOW_BYTES
) -> list[Task]:
    """The next lines that are still to do, the shortest first; empty when there are no more.

    Args:
      skip: whether the line at a position is done.
      lines, size: where the window ends; it holds one line more than `size` bytes at most.
    """
    found: list[Task] = []
    held = 0
    for task in tasks:
        if skip(task.position):
            continue
        found.append(task)
        held += len(task.body) + (0 if task.row is None else _held(task.row))
        if len(found) >= lines or held >= size:
            break
    found.sort(key=lambda task: (cost(task), -task.position))
    return found


class Feed:
    """Hands lines out one by one to many takers of one event loop.

    An async context manager: leaving it waits for the reading thread, which has the iterator, and
    ends at the next line, however many there are to be passed over.

    Args:
      tasks, skip, lines, size: as `read_window` takes them.
      over: asked before each line on the reading thread: whether no more are wanted.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        skip: Callable[[int], bool],
        *,
        lines: int,
        size: int = WINDOW_BYTES,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tasks, self._skip, self._over = tasks, skip, over
        self._lines, self._size = lines, size
        self._window: list[Task] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-input")
        self._reading: asyncio.Future[list[Task]] | None = None
        self._turn = asyncio.Lock()
        self._ended = self._left = False

    async def __aenter__(self) -> "Feed":
        self._reading = self._read()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left = True
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def next(self) -> Task | None:
        """The next line to begin; None when there are no more.

        Raises:
          BatchError: the input cannot be read on.
        """
        if not self._window and not self._ended:
            async with self._turn:
                while not self._window and not self._ended:
                    await self._refill()
        return self._window.pop() if self._window else None

    async def _refill(self) -> None:
        assert self._reading is not None, "a feed is entered before use"
        self._window = await asyncio.shield(self._reading)
        if self._window:
            self._reading = self._read()
        else:
            self._ended = True

    def _read(self) -> "asyncio.Future[list[Task]]":
        def work() -> list[Task]:
            wanted = itertools.takewhile(lambda _: not (self._left or self._over()), self._tasks)
            return read_window(wanted, self._skip, lines=self._lines, size=self._size)

        return asyncio.get_running_loop().run_in_executor(self._thread, work)
