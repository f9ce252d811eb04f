"""The loop of a batch: keeps what answers busy, and writes down each answer as it comes.

    lines to do -> Feed -> `width` workers -> Answerer -> record -> journals

Nothing is held beyond the lines in flight and two windows of lines to come.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from tpuinfer.offline.lines import written
from tpuinfer.offline.order import LINES_EACH, WINDOW_BYTES, Feed
from tpuinfer.offline.task import Answerer, Outcome, Stamp, Task, stamp

_log = logging.getLogger(__name__)

_BACKOFF = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a line whose answer may come another time is asked again; then it is left."""


class Recorder(Protocol):
    """Where answers go, and what is known to be there; `Ledger` is one."""

    def is_done(self, position: int) -> bool: ...

    def record(self, task: Task, line: bytes, ok: bool) -> None:
        """Append one line to a journal.

        Raises:
          BatchError: it cannot be written; what was written before is safe.
        """


@dataclass(frozen=True)
class Pace:
    """How a run goes about it; nothing here changes an answer.

    Attributes:
      strict: begin nothing new once a line has failed.
      grace_seconds: how long what is in flight may go on once it is asked to stop.
      backoff: seconds before each further try of a line that met a passing obstacle.
      lines_each, window_bytes: of the windows that are read ahead.
    """

    strict: bool = False
    grace_seconds: float = 25.0
    backoff: tuple[float, ...] = _BACKOFF
    lines_each: int = LINES_EACH
    window_bytes: int = WINDOW_BYTES


@dataclass
class Tally:
    """What one run has done so far.

    Attributes:
      answered, failed: lines that got an answer, or an error that was recorded.
      passed: lines given up for now, for what stood in their way may pass; not recorded.
      prompt_tokens, completion_tokens: of the answers.
      statuses: how many failed with which, as HTTP has them.
    """

    answered: int = 0
    failed: int = 0
    passed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def count(self, outcome: Outcome) -> None:
        if outcome.ok:
            self.answered += 1
        else:
            self.failed += 1
            self.statuses[outcome.status] += 1
        self.prompt_tokens += outcome.prompt_tokens
        self.completion_tokens += outcome.completion_tokens


@dataclass(frozen=True)
class Marks:
    """What all stamps of a batch are made of: its own seed, when it was begun, and its name."""

    seed: int
    created: int
    batch: str = ""

    def of(self, task: Task) -> Stamp:
        """A line without an id is known by its place."""
        name = task.where if task.custom_id is None else task.custom_id
        return stamp(name, seed=self.seed, created=self.created, batch=self.batch)


async def run(
    tasks: Iterator[Task],
    recorder: Recorder,
    answerer: Answerer,
    marks: Marks,
    *,
    stop: asyncio.Event,
    pace: Pace | None = None,
    on_progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Answer every line that is not done; returns when all are, or when it was asked to stop.

    Cancelling it cancels what is in flight; what is recorded stays.

    Raises:
      BatchError: the input cannot be read on, or a journal not written.
      TpuinferError: nothing can be answered any more. Both cancel what is in flight.
    """
    pace = pace or Pace()
    work = _Work(recorder, answerer, marks, stop=stop, pace=pace, on_progress=on_progress)
    width = max(1, answerer.width)
    lines = width * pace.lines_each
    async with Feed(
        tasks, recorder.is_done, lines=lines, size=pace.window_bytes, over=lambda: work.over
    ) as feed:
        workers = [asyncio.create_task(work.through(feed)) for _ in range(width)]
        stopping = asyncio.create_task(stop.wait())
        ended = asyncio.gather(*workers)
        try:
            either: list[asyncio.Future[Any]] = [ended, stopping]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await asyncio.wait([ended], timeout=pace.grace_seconds)
            if ended.done():
                ended.result()
        finally:
            for one in (*workers, stopping):
                one.cancel()
            await asyncio.gather(*workers, stopping, ended, return_exceptions=True)
    return work.tally


class _Work:
    """What the workers of one run share."""

    def __init__(
        self,
        recorder: Recorder,
        answerer: Answerer,
        marks: Marks,
        *,
        stop: asyncio.Event,
        pace: Pace,
        on_progress: Callable[[Tally], None] | None,
    ) -> None:
        self.tally = Tally()
        self._recorder, self._answerer, self._marks = recorder, answerer, marks
        self._stop, self._pace, self._on_progress = stop, pace, on_progress
        self._halted = False

    async def through(self, feed: Feed) -> None:
        """One worker: a line at a time until there are no more, or none may begin."""
        try:
            while not self.over:
                task = await feed.next()
                if task is None or self.over:
                    return
                await self._one(task)
        except BaseException:
            self._halted = True  # the others begin nothing until they are cancelled
            raise

    @property
    def over(self) -> bool:
        """Whether no line is to be begun any more; any thread may ask."""
        return self._halted or self._stop.is_set()

    async def _one(self, task: Task) -> None:
        mark = self._marks.of(task)
        if task.error is not None:
            outcome: Outcome | None = self._answerer.refuse(task.error)
        else:
            outcome = await self._asked(task, mark)
        if outcome is None:
            self.tally.passed += 1
        else:
            self._recorder.record(task, written(task, mark, outcome), outcome.ok)
            self.tally.count(outcome)
            self._halted = self._halted or (self._pace.strict and not outcome.ok)
        if self._on_progress is not None:
            self._on_progress(self.tally)

    async def _asked(self, task: Task, mark: Stamp) -> Outcome | None:
        """The line's outcome; None where it may be another one another time."""
        outcome = await self._answerer.answer(task.url, task.body, mark)
        for seconds in self._pace.backoff:
            if not outcome.transient:
                return outcome
            if await self._stopped_within(seconds):
                return None
            outcome = await self._answerer.answer(task.url, task.body, mark)
        if not outcome.transient:
            return outcome
        _log.warning("%s is left for another run: %d %r", task.where, outcome.status, outcome.body)
        return None

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return False
        return True
