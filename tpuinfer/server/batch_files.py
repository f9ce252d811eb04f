"""The files of one batch: its journals, and what its end makes of them."""

import glob
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tpuinfer.offline.batch import Batch, Care, Job
from tpuinfer.offline.index import DuplicateError, Index
from tpuinfer.offline.source import Form, Source, open_source
from tpuinfer.offline.task import BatchError, PassingError, Task
from tpuinfer.server.records import (
    BatchObject,
    BatchRecord,
    Complaint,
    FileObject,
    FileRecord,
    new_id,
    now,
)
from tpuinfer.server.store import Store

_log = logging.getLogger(__name__)

OUTPUT, ERRORS = "output", "errors"
_SEED = 0
"""Of every batch: the same file gives the same answers each time, as `tpuinfer.batch` does."""


def counted(path: Path, stop: threading.Event) -> int | Complaint:
    """The lines of an input file, or why no batch can be made of it. Blocks.

    Raises:
      PassingError: not now: there is no room for temporary files, or `stop` is set.
    """
    try:
        index = Index.build(_Stoppable(open_source(_patterns(path), Form()), stop))
    except DuplicateError as error:
        return Complaint(code=error.code, line=error.line, message=str(error), param="custom_id")
    except PassingError:
        raise
    except BatchError as error:
        _log.warning(
            "an input file of a batch: %s", error
        )  # names a path, which is not for clients
        message = "the input file cannot be read: the server's log has why"
        return Complaint(code="invalid_file", message=message, param="input_file_id")
    try:
        lines = len(index)
    finally:
        index.close()
    if not lines:
        message = "the input file has no lines: send one request a line"
        return Complaint(code="empty_file", message=message, param="input_file_id")
    return lines


class _Stoppable:
    """Lines whose reader can be stopped from another thread."""

    def __init__(self, source: Source, stop: threading.Event) -> None:
        self._source, self._stop = source, stop

    def tasks(self) -> Iterator[Task]:
        for task in self._source.tasks():
            if self._stop.is_set():
                raise PassingError("the server stops")
            yield task


def opened(
    store: Store, record: BatchRecord, path: Path, identity: str, *, to_end: bool = False
) -> Batch:
    """The batch with its journals, as far as it is. Blocks.

    Args:
      to_end: open it, whatever it was begun with: to end it, not to go on.

    Raises:
      MixUpError: it was begun with another model or other software.
      BatchError: it cannot be opened.
    """
    folder = store.batch_folder(record.shown.id)
    job = Job(
        inputs=_patterns(path),
        output=str(folder / f"{OUTPUT}.jsonl"),
        errors=str(folder / f"{ERRORS}.jsonl"),
        seed=_SEED,
        created=record.shown.created_at,
        name=record.shown.id,
    )
    return Batch.open(job, lambda: {"identity": identity}, Care(to_end=to_end))


def _patterns(path: Path) -> list[str]:
    """An input by its name, whatever is in that."""
    return [glob.escape(str(path))]


def begun(store: Store, batch_id: str) -> bool:
    """Whether anything was written yet."""
    return any(_size(store, batch_id, name) for name in (OUTPUT, ERRORS))


def end(store: Store, batch_id: str, update: Callable[[BatchObject], BatchObject]) -> BatchRecord:
    """Put a batch into its last state and show the files that hold something. Blocks.

    One that has ended already stays as it is.
    """
    found = store.batch(batch_id)
    assert found is not None, "batches stay"
    made = {
        name: _shown(store, found, name)
        for name in (OUTPUT, ERRORS)
        if _size(store, batch_id, name)
    }
    ids = {name: record.shown.id for name, record in made.items()}

    def ended(record: BatchRecord) -> BatchRecord:
        if record.ended:
            return record
        shown = update(record.shown).model_copy(
            update={"output_file_id": ids.get(OUTPUT), "error_file_id": ids.get(ERRORS)}
        )
        return replace(record, shown=shown)

    return store.change(batch_id, ended, list(made.values()))


def _shown(store: Store, batch: BatchRecord, name: str) -> FileRecord:
    shown = FileObject(
        id=new_id("file-"),
        bytes=_size(store, batch.shown.id, name),
        created_at=now(),
        filename=f"{batch.shown.id}_{name}.jsonl",
        purpose="batch_output",
    )
    return FileRecord(shown, batch.owner, f"batches/{batch.shown.id}/{name}.jsonl")


def _size(store: Store, batch_id: str, name: str) -> int:
    try:
        return os.stat(store.folder / "batches" / batch_id / f"{name}.jsonl").st_size
    except FileNotFoundError:
        return 0
