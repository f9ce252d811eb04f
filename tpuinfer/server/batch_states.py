"""The steps of a batch from state to state, as the store keeps them; each whole or not at all."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import replace
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

    async def first(
        self, statuses: Collection[Status], *, but: Collection[str | None] = ()
    ) -> BatchRecord | None:
        """The oldest batch in one of these; ids in `but` are passed over."""
        for each in await asyncio.to_thread(self._store.open_batches):
            if each.shown.status in statuses and each.shown.id not in but:
                return each
        return None

    async def input_of(self, record: BatchRecord) -> Path:
        found = await asyncio.to_thread(self._store.file, record.shown.input_file_id, None)
        assert found is not None, "a file that an open batch reads cannot be deleted"
        return self._store.path_of(found)

    async def end(
        self,
        batch_id: str,
        status: Status,
        counts: Counts | None = None,
        complaint: Complaint | None = None,
    ) -> None:
        """Its last state, which stays. One that is cancelled meanwhile is cancelled."""
        fields: dict[str, object] = {}
        if counts is not None:
            fields["request_counts"] = counts
        if complaint is not None:
            _log.warning("batch %s: %s", batch_id, complaint.message)
            fields["errors"] = Complaints(data=[complaint])

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
            return replace(record, shown=moved(record.shown, status, **fields))

        await to_its_end(self._store.change, batch_id, update)

    async def name(self, batch_id: str, identity: str) -> None:
        """Which weights its answers are made with, before the first is."""
        await to_its_end(
            self._store.change, batch_id, lambda record: replace(record, identity=identity)
        )

    async def note(self, batch_id: str, counts: Counts) -> None:
        """How far it is, for who asks after a restart; the journals know, so an error is none."""

        def update(record: BatchRecord) -> BatchRecord:
            if record.ended:
                return record
            shown = record.shown.model_copy(update={"request_counts": counts})
            return replace(record, shown=shown)

        try:
            await to_its_end(self._store.change, batch_id, update)
        except (sqlite3.Error, OSError) as error:
            _log.warning("how far batch %s is was not noted: %s", batch_id, error)


async def to_its_end(call: Callable[..., Any], *args: object) -> Any:
    """On a thread, and to its end: what writes is not left half done by a cancellation."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
