"""The steps of a batch from state to state, as the store keeps them; each whole or not at all."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpuinfer.server import batch_files
from tpuinfer.server.records import (
    BatchObject,
    BatchRecord,
    Complaint,
    Complaints,
    Counts,
    Status,
    moved,
)
from tpuinfer.server.store import Store

_log = logging.getLogger(__name__)


class States:
    """Reads and writes one store from an event loop, which waits for no disk."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def batch(self, batch_id: str) -> BatchRecord:
        found = await asyncio.to_thread(self._store.batch, batch_id)
        assert found is not None, "batches stay"
        return found

    async def first(self, *statuses: Status) -> BatchRecord | None:
        """The oldest batch in one of these."""
        records = await asyncio.to_thread(self._store.open_batches)
        return next((each for each in records if each.shown.status in statuses), None)

    async def input_of(self, record: BatchRecord) -> Path:
        found = await asyncio.to_thread(self._store.file, record.shown.input_file_id, None)
        assert found is not None, "a file that an open batch reads cannot be deleted"
        return self._store.path_of(found)

    async def fail(self, batch_id: str, complaint: Complaint, counts: Counts | None = None) -> None:
        _log.warning("batch %s failed: %s", batch_id, complaint.message)
        await self.end(batch_id, "failed", counts, errors=Complaints(data=[complaint]))

    async def end(
        self, batch_id: str, status: Status, counts: Counts | None = None, **fields: object
    ) -> None:
        """Its last state. One that is cancelled meanwhile is cancelled, whatever else it is."""
        if counts is not None:
            fields["request_counts"] = counts

        def ended(shown: BatchObject) -> BatchObject:
            cancelled = shown.status == "cancelling"
            return moved(shown, "cancelled" if cancelled else status, **fields)

        record = await to_its_end(batch_files.end, self._store, batch_id, ended)
        found = record.shown.request_counts
        _log.info(
            "batch %s %s: %d of %d lines answered, %d failed",
            batch_id,
            record.shown.status,
            found.completed,
            found.total,
            found.failed,
        )

    async def move(
        self, batch_id: str, status: Status, before: tuple[Status, ...], **fields: object
    ) -> None:
        """Into another status, from these only."""

        def update(record: BatchRecord) -> BatchRecord:
            if record.shown.status not in before:
                return record
            shown = moved(record.shown, status, **fields)
            return BatchRecord(shown, record.owner, record.identity)

        await to_its_end(self._store.change, batch_id, update)

    async def save(self, batch_id: str, identity: str | None = None, **fields: object) -> None:
        def update(record: BatchRecord) -> BatchRecord:
            if record.ended:
                return record
            shown = record.shown.model_copy(update=fields)
            return BatchRecord(shown, record.owner, identity or record.identity)

        await to_its_end(self._store.change, batch_id, update)


async def to_its_end(call: Callable[..., Any], *args: object) -> Any:
    """On a thread, and to its end: what writes is not left half done by a cancellation."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
