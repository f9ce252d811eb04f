"""The worker of `/v1/batches`: one batch after another, the oldest first, beside all other traffic.

    created -> validating -- check ----> in_progress -- run --> finalizing -> completed
                  |                          |  |
                  `-> failed <- other weights'  `-> expired
       cancel, in any of them -> cancelling -> cancelled

Its journals and the store are all it has: whatever ends the process, the next one goes on from
there. What was in flight is asked again, and gets the same answer.
"""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from tpuinfer.errors import TpuinferError
from tpuinfer.offline.batch import Batch
from tpuinfer.offline.run import Pace, Tally
from tpuinfer.offline.task import Answerer, BatchError
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


class Model(Protocol):
    """What lines are answered with.

    Attributes:
      failure: why nothing can be answered now; None if something can.
    """

    @property
    def failure(self) -> Exception | None: ...

    def version(self) -> int:
        """Of the weights, counted from 0 since the process began."""

    async def identity(self) -> str:
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
        self._current: str | None = None
        self._batch: Batch | None = None
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        for each in (self._check_one, self._run_one, self._cancel_one):
            self._tasks.append(asyncio.create_task(self._forever(each)))

    async def stop(self) -> None:
        """Leave everything as it is; what is in flight is dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """There is something new in the store."""
        for event in self._wakes:
            event.set()

    def cancelled(self, batch_id: str) -> None:
        """The store says of this batch that it is being cancelled."""
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
        while True:
            wake.clear()
            try:
                found = await one()
            except Exception:
                _log.exception("the worker of batches goes on in %g s", _AGAIN_SECONDS)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if not found:
                await wake.wait()

    async def _check_one(self) -> bool:
        """Read the input of a new batch, which needs no model."""
        if (record := await self._states.first("validating")) is None:
            return False
        batch_id = record.shown.id
        found = await to_its_end(batch_files.counted, await self._states.input_of(record))
        if isinstance(found, Complaint):
            await self._states.fail(batch_id, found)
        else:
            counts = {"request_counts": Counts(total=found)}
            await self._states.move(batch_id, "in_progress", ("validating",), **counts)
            self.wake()
        return True

    async def _cancel_one(self) -> bool:
        """End a batch that is cancelled before its turn, or was when the process ended."""
        record = await self._states.first("cancelling")
        if record is None or record.shown.id == self._current:
            return False
        if record.identity is not None and batch_files.begun(self._store, record.shown.id):
            with contextlib.suppress(BatchError):
                batch = await self._opened(record, record.identity)
                await self._finish(record.shown.id, batch)
        await self._states.end(record.shown.id, "cancelled")
        return True

    async def _run_one(self) -> bool:
        """Go on with the oldest batch until it ends, or something is in its way."""
        record = await self._states.first("in_progress", "finalizing")
        if record is None:
            return False
        await self._until_ready()
        self._stop = asyncio.Event()
        self._current = record.shown.id
        try:
            again = await asyncio.to_thread(self._store.batch, record.shown.id)
            if again is not None and again.shown.status in ("in_progress", "finalizing"):
                await self._go(again)
        except (NotReadyError, EngineDeadError) as error:
            _log.info("batch %s waits: %s", record.shown.id, error)
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._current = None
            self.wake()
        return True

    async def _go(self, record: BatchRecord) -> None:
        """Open the journals, answer what is left, and end the batch as it has to end."""
        batch_id, shown = record.shown.id, record.shown
        answerer = BatchLines(self._model.desk(record.owner), shown.endpoint, self._model.version)
        identity = await self._model.identity()
        if record.identity not in (None, identity):
            await self._states.fail(batch_id, _model_changed("the server runs with another model"))
            return
        await self._states.save(batch_id, identity=identity)
        try:
            batch = await self._opened(record, identity)
        except BatchError as error:
            _log.warning("batch %s: %s", batch_id, error)
            message = "the batch cannot go on: the server's log has why"
            await self._states.fail(batch_id, Complaint(code="invalid_state", message=message))
            return
        self._batch = batch
        try:
            await self._do(shown, batch, answerer)
        finally:
            await self._states.save(batch_id, request_counts=_counts(batch))
            self._batch = None
            await to_its_end(batch.close)

    async def _do(self, shown: BatchObject, batch: Batch, answerer: Answerer) -> None:
        """From where it is to its end. Raises NotReadyError or EngineDeadError: not now."""
        try:
            await self._answer(shown, batch, answerer)
            await self._conclude(shown, batch)
        except (NotReadyError, EngineDeadError, sqlite3.Error):
            raise
        except BatchError as error:
            _log.warning("batch %s goes on in %g s: %s", shown.id, _AGAIN_SECONDS, error)
            await self._stopped_within(_AGAIN_SECONDS)
        except ModelChangedError as error:
            await self._finish(shown.id, batch)
            await self._states.fail(shown.id, _model_changed(str(error)), _counts(batch))
        except Exception:
            _log.exception("batch %s cannot be done", shown.id)
            complaint = Complaint(code="internal_error", message="internal error")
            await self._states.fail(shown.id, complaint, _counts(batch))

    async def _answer(self, shown: BatchObject, batch: Batch, answerer: Answerer) -> None:
        """Answer until nothing is left, the batch is cancelled, or its time is over.

        Raises:
          NotReadyError: the server stops. Else as `Batch.run`.
        """
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(max(0.0, shown.expires_at - time.time()), self._stop.set)
        try:
            while batch.left and not self._stop.is_set():
                await self._while_ready(shown.id, batch, self._run(batch, answerer, self._stop))
                if batch.left:
                    await self._stopped_within(_AGAIN_SECONDS)
        finally:
            expiry.cancel()

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
                    await self._states.save(batch_id, request_counts=_counts(batch))
                    save = time.monotonic() + _SAVE_SECONDS
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _conclude(self, shown: BatchObject, batch: Batch) -> None:
        """A batch that has nothing left, or may not go on."""
        found = await asyncio.to_thread(self._store.batch, shown.id)
        assert found is not None, "batches stay"
        status: Status = "cancelled" if found.shown.status == "cancelling" else "completed"
        if batch.left and status == "completed":
            status = "expired"
            await self._run(batch, ExpiredLines(), asyncio.Event())
        if status != "cancelled":
            await self._states.move(shown.id, "finalizing", ("in_progress",))
        await self._finish(shown.id, batch)
        await self._states.end(shown.id, status, _counts(batch))

    async def _finish(self, batch_id: str, batch: Batch) -> None:
        """Put the answers in the order of the input, if there is room to do it."""
        try:
            await to_its_end(lambda: batch.finish(sort=True))
        except BatchError as error:
            _log.warning("batch %s stays in the order of its answers: %s", batch_id, error)
            await to_its_end(batch.finish)

    async def _opened(self, record: BatchRecord, identity: str) -> Batch:
        """The open batch; if nobody waits any more, closed. Raises BatchError."""
        path = await self._states.input_of(record)
        opening = asyncio.ensure_future(
            asyncio.to_thread(batch_files.opened, self._store, record, path, identity)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with contextlib.suppress(TpuinferError):
                (await opening).close()
            raise

    async def _until_ready(self) -> None:
        while self._model.failure is not None:
            await asyncio.sleep(_LOOK_SECONDS)

    async def _stopped_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)


def _counts(batch: Batch) -> Counts:
    return Counts(total=len(batch), completed=batch.answered, failed=batch.failed)


def _model_changed(why: str) -> Complaint:
    message = f"{why}; the answers so far are kept: create a new batch for the others"
    return Complaint(code="model_changed", message=message)
