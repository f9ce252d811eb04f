"""The worker of `/v1/batches`: one batch after another, the oldest first, beside all other traffic.

    created -> validating -- check ----> in_progress -- run --> finalizing -> completed
                  |                          |  |
                  `-> failed <- other weights'  `-> expired
       cancel, in any of them -> cancelling -> cancelled

Its journals and the store are all it has: whatever ends the process, the next one goes on from
there. What was in flight is asked again, and gets the same answer. A batch that meets an obstacle
(a full disk) waits for a while, and lets the others pass.
"""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol

from tpuinfer.offline.batch import Batch
from tpuinfer.offline.manifest import MixUpError
from tpuinfer.offline.run import Pace, Tally
from tpuinfer.offline.task import Answerer, BatchError, PassingError
from tpuinfer.server import batch_files
from tpuinfer.server.batch_lines import BatchLines, ExpiredLines, ModelChangedError
from tpuinfer.server.batch_states import States, to_its_end
from tpuinfer.server.failures import EngineDeadError, NotReadyError
from tpuinfer.server.records import (
    BatchObject,
    BatchRecord,
    Complaint,
    Counts,
    Status,
)
from tpuinfer.server.store import Store

_log = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0
"""How long lines in flight may go on in a batch that is cancelled or expires."""

_LOOK_SECONDS = 0.1
"""Between two looks at whether there is a model, or still one."""

_SAVE_SECONDS = 5.0
"""Between two notes of how far a batch is; its journals know it to the line."""

_AGAIN_SECONDS = 20.0
"""Before a batch goes on that met an obstacle which may pass: a full disk, a full queue."""

_OBSTACLES = (BatchError, sqlite3.Error, OSError)


class Model(Protocol):
    """What lines are answered with.

    Attributes:
      name: that requests ask for.
      failure: why nothing can be answered now; None if something can.
    """

    @property
    def name(self) -> str: ...
    @property
    def failure(self) -> Exception | None: ...

    def version(self) -> int:
        """Of the weights, counted from 0 since the process began."""

    def identity(self) -> str:
        """Of the weights and all else that answers depend on; once there is no failure."""

    def desk(self, owner: str | None) -> Answerer:
        """What answers lines of a batch that this key made."""


class Runner:
    """Does the batches of a store, from `start` to `stop`, on one event loop.

    Attributes:
      lines: "answered" and "failed" -> lines since the start.
    """

    def __init__(self, store: Store, model: Model) -> None:
        self.lines: Counter[str] = Counter(answered=0, failed=0)
        self._store, self._states = store, States(store)
        self._model = model
        self._wakes: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = threading.Event()
        self._later: dict[str, float] = {}
        self._current: str | None = None
        self._batch: Batch | None = None
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        for each in (self._check_one, self._run_one, self._cancel_one):
            self._tasks.append(asyncio.create_task(self._forever(each)))

    async def stop(self) -> None:
        """Leave everything as it is; what is in flight is dropped."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """There is something new in the store."""
        for event in self._wakes:
            event.set()

    def cancelled(self, batch_id: str) -> None:
        """The store says of this batch that it is being cancelled."""
        self._later.pop(batch_id, None)
        if self._current == batch_id:
            self._stop.set()
        self.wake()

    def counts(self, shown: BatchObject) -> BatchObject:
        """The same batch as far as it is at this moment."""
        if self._current != shown.id or self._batch is None or shown.status == "validating":
            return shown
        return shown.model_copy(update={"request_counts": _counts(self._batch)})

    async def _forever(self, one: Callable[[], Awaitable[bool]]) -> None:
        """Do one after another; where there is none, wait until there may be."""
        wake = asyncio.Event()
        self._wakes.append(wake)
        while not self._stopping.is_set():
            wake.clear()
            try:
                found = await one()
            except Exception:
                _log.exception("the worker of batches goes on in %g s", _AGAIN_SECONDS)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if not found:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), self._until_later())

    async def _next(self, *statuses: Status) -> BatchRecord | None:
        """The oldest batch in one of these that is not under way and has not been put off."""
        now = time.monotonic()
        self._later = {one: then for one, then in self._later.items() if then > now}
        return await self._states.first(statuses, but={*self._later, self._current})

    def _until_later(self) -> float | None:
        """Seconds until the first batch that was put off; None if none was."""
        return max(0.0, min(self._later.values()) - time.monotonic()) if self._later else None

    @contextlib.contextmanager
    def _putting_off(self, batch_id: str) -> Iterator[None]:
        """What is in the way inside puts the batch off, for others to pass."""
        try:
            yield
        except _OBSTACLES as error:
            _log.warning("batch %s goes on in %g s: %s", batch_id, _AGAIN_SECONDS, error)
            self._later[batch_id] = time.monotonic() + _AGAIN_SECONDS

    async def _check_one(self) -> bool:
        """Read the input of a new batch, which needs no model."""
        if (record := await self._next("validating")) is None:
            return False
        batch_id = record.shown.id
        with self._putting_off(batch_id):
            path = await self._states.input_of(record)
            found = await to_its_end(batch_files.counted, path, self._stopping)
            if isinstance(found, Complaint):
                await self._states.end(batch_id, "failed", complaint=found)
            else:
                counts = {"request_counts": Counts(total=found)}
                await self._states.move(batch_id, "in_progress", ("validating",), **counts)
                self.wake()
        return True

    async def _cancel_one(self) -> bool:
        """End a batch that is cancelled before its turn, or was when the process ended."""
        if (record := await self._next("cancelling")) is None:
            return False
        with self._putting_off(record.shown.id):
            await self._wind_up(record)
        return True

    async def _run_one(self) -> bool:
        """Go on with the oldest batch until it ends, or something is in its way."""
        if (record := await self._next("in_progress", "finalizing")) is None:
            return False
        while self._model.failure is not None:
            await asyncio.sleep(_LOOK_SECONDS)
        self._stop = asyncio.Event()
        self._current = batch_id = record.shown.id
        try:
            record = await self._states.batch(batch_id)
            if record.shown.status in ("in_progress", "finalizing"):
                with self._putting_off(batch_id):
                    await self._go(record)
        except (NotReadyError, EngineDeadError) as error:
            _log.info("batch %s waits: %s", batch_id, error)
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._current = None
            self.wake()
        return True

    async def _go(self, record: BatchRecord) -> None:
        """Open the journals, answer what is left, and end the batch as it has to end.

        Raises:
          NotReadyError, EngineDeadError, or what is in `_OBSTACLES`: not now.
        """
        shown = record.shown
        answerer = BatchLines(self._model.desk(record.owner), shown.endpoint, self._model.version)
        identity = self._model.identity()
        if (why := self._changed(record, identity)) is not None:
            await self._wind_up(record, _model_changed(why))
            return
        await self._states.name(shown.id, identity)
        try:
            batch = await self._opened(record, identity)
        except MixUpError as error:
            await self._wind_up(record, _model_changed("; ".join(error.differences)))
            return
        except PassingError:
            raise
        except BatchError as error:
            if time.time() < shown.expires_at:
                raise
            _log.warning("batch %s: %s", shown.id, error)
            message = "the batch cannot go on: the server's log has why"
            lost = Complaint(code="invalid_state", message=message)
            await self._states.end(shown.id, "failed", complaint=lost)
            return
        async with self._closing(shown.id, batch):
            self._batch = batch
            try:
                complaint = await self._answer(shown, batch, answerer)
                await self._conclude(shown.id, batch, complaint)
            finally:
                self._batch = None

    def _changed(self, record: BatchRecord, identity: str) -> str | None:
        """Why this server is not the one to go on with a batch."""
        if record.identity is None and record.shown.model != self._model.name:
            return f"the batch is for {record.shown.model!r}: the server runs {self._model.name!r}"
        if record.identity not in (None, identity):
            return "the server runs with another model"
        return None

    async def _wind_up(self, record: BatchRecord, complaint: Complaint | None = None) -> None:
        """End a batch that nothing more is answered of; what is answered is counted and kept.

        Args:
          complaint: why it failed; None of one that is cancelled.
        """
        batch_id = record.shown.id
        status: Status = "cancelled" if complaint is None else "failed"
        if record.identity is None or not batch_files.begun(self._store, batch_id):
            await self._states.end(batch_id, status, complaint=complaint)
            return
        try:
            batch = await self._opened(record, record.identity, to_end=True)
        except PassingError:
            raise
        except BatchError as error:
            _log.warning("batch %s ends as it lies there: %s", batch_id, error)
            await self._states.end(batch_id, status, complaint=complaint)
            return
        async with self._closing(batch_id, batch):
            await self._conclude(batch_id, batch, complaint)

    async def _answer(
        self, shown: BatchObject, batch: Batch, answerer: Answerer
    ) -> Complaint | None:
        """Answer until nothing is left, the batch is cancelled, or its time is over.

        Returns:
          Why no more can be answered, where that is so.

        Raises:
          PassingError: lines are left, for now. Else as `Batch.run`.
        """
        seconds = shown.expires_at - time.time()
        if seconds <= 0:
            self._stop.set()
        expiry = asyncio.get_running_loop().call_later(max(0.0, seconds), self._stop.set)
        try:
            await self._while_ready(shown.id, batch, self._run(batch, answerer, self._stop))
        except ModelChangedError as error:
            return _model_changed(str(error))
        except (NotReadyError, EngineDeadError, *_OBSTACLES):
            raise
        except Exception:
            _log.exception("batch %s cannot be done", shown.id)
            return Complaint(code="internal_error", message="internal error")
        finally:
            expiry.cancel()
        if batch.left and not self._stop.is_set():
            raise PassingError(f"{batch.left} lines could not be answered for now")
        return None

    async def _run(self, batch: Batch, answerer: Answerer, stop: asyncio.Event) -> None:
        seen = Tally()

        def count(tally: Tally) -> None:
            self.lines["answered"] += tally.answered - seen.answered
            self.lines["failed"] += tally.failed - seen.failed
            seen.answered, seen.failed = tally.answered, tally.failed

        pace = Pace(grace_seconds=CANCEL_SECONDS)
        await batch.run(answerer, stop=stop, pace=pace, on_progress=count)

    async def _while_ready(
        self, batch_id: str, batch: Batch, work: Coroutine[Any, Any, None]
    ) -> None:
        """Do it, and drop it where the model is taken away: a server that stops waits for none."""
        task = asyncio.create_task(work)
        save = time.monotonic() + _SAVE_SECONDS
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_LOOK_SECONDS)
                if (failure := self._model.failure) is not None and not task.done():
                    raise failure.with_traceback(None)
                if time.monotonic() > save:
                    await self._states.note(batch_id, _counts(batch))
                    save = time.monotonic() + _SAVE_SECONDS
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _conclude(self, batch_id: str, batch: Batch, complaint: Complaint | None) -> None:
        """End an open batch that has nothing left, or may not go on."""
        now = (await self._states.batch(batch_id)).shown.status
        status: Status
        if now == "cancelling":
            status = "cancelled"
        elif not batch.left:
            status, complaint = "completed", None
        else:
            status = "expired" if complaint is None else "failed"
        if status == "expired":
            await self._run(batch, ExpiredLines(), asyncio.Event())
        if status in ("completed", "expired"):
            await self._states.move(batch_id, "finalizing", ("in_progress",))
        try:
            await to_its_end(lambda: batch.finish(sort=True))
        except BatchError as error:  # no room for a second one beside it
            _log.warning("batch %s stays in the order of its answers: %s", batch_id, error)
            await to_its_end(batch.finish)
        await self._states.end(batch_id, status, _counts(batch), complaint)

    async def _opened(self, record: BatchRecord, identity: str, *, to_end: bool = False) -> Batch:
        """The open batch; if nobody waits any more, closed. Raises BatchError."""
        path = await self._states.input_of(record)
        opening = asyncio.ensure_future(
            asyncio.to_thread(
                batch_files.opened, self._store, record, path, identity, to_end=to_end
            )
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with contextlib.suppress(*_OBSTACLES):
                (await opening).close()
            raise

    @contextlib.asynccontextmanager
    async def _closing(self, batch_id: str, batch: Batch) -> AsyncIterator[None]:
        """Closes the batch whatever happens inside; an error of that is logged, and no more."""

        def close() -> None:
            try:
                batch.close()
            except _OBSTACLES as error:
                _log.warning("batch %s was not closed in good order: %s", batch_id, error)

        try:
            yield
        finally:
            try:
                await self._states.note(batch_id, _counts(batch))
            finally:
                await to_its_end(close)


def _counts(batch: Batch) -> Counts:
    return Counts(total=len(batch), completed=batch.answered, failed=batch.failed)


def _model_changed(why: str) -> Complaint:
    message = f"{why}; the answers so far are kept: create a new batch for the others"
    return Complaint(code="model_changed", message=message)
