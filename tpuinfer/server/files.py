"""`/v1/files`: what batches read, and what they wrote."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from tpuinfer.server import trail
from tpuinfer.server.batch_states import to_its_end
from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import shown
from tpuinfer.server.paging import no_such, only, page_of
from tpuinfer.server.records import (
    FileDeleted,
    FileList,
    FileObject,
    FileRecord,
    new_id,
    now,
)
from tpuinfer.server.replies import ERRORS
from tpuinfer.server.store import PART, Page, Store
from tpuinfer.server.upload import received, room

MOST_FILES = 10_000
"""In one list."""

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
    "additionalProperties": False,
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes of the file.", "content": {"application/jsonl": {}}}
}


def files_router(store: Callable[[], Store], most_bytes: int) -> APIRouter:
    """The routes.

    Args:
      store: gives the store, or raises ApiError where there is none.
      most_bytes: of one file.
    """
    router = APIRouter(prefix="/v1/files", responses=ERRORS)

    async def found(file_id: str) -> FileRecord:
        record = await asyncio.to_thread(store().file, file_id, viewer())
        if record is None:
            raise no_such("file", file_id, "file_id")
        return record

    @router.post("", openapi_extra=_BODY)
    async def create(http: Request) -> FileObject:
        """Take a file of requests, one a line, for a batch."""
        return await _taken(http, store(), most_bytes)

    @router.get("", dependencies=[only("after", "limit", "order", "purpose")])
    async def files(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_FILES)] = MOST_FILES,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> FileList:
        """The files, a page at a time; the newest first, unless asked otherwise."""
        page = Page(after, limit, order == "desc")
        records = await asyncio.to_thread(store().files, page, purpose, viewer())
        if records is None:
            raise no_such("file", str(after), "after")
        return FileList(**page_of([record.shown for record in records], limit))

    @router.get("/{file_id}", dependencies=[only()])
    async def file(file_id: str) -> FileObject:
        """One of them."""
        return (await found(file_id)).shown

    @router.get("/{file_id}/content", dependencies=[only()], responses=_LINES)
    async def content(file_id: str) -> FileResponse:
        """Its bytes."""
        record = await found(file_id)
        path = store().path_of(record)
        try:
            about = await asyncio.to_thread(path.stat)
        except OSError:
            raise no_such("file", file_id, "file_id") from None
        return FileResponse(path, media_type="application/jsonl", stat_result=about)

    @router.delete("/{file_id}", dependencies=[only()])
    async def delete(file_id: str) -> FileDeleted:
        """Forget it, unless a batch still reads it."""
        try:
            with room():
                reader = await to_its_end(store().remove_file, file_id, viewer())
        except KeyError:
            raise no_such("file", file_id, "file_id") from None
        if reader is not None:
            message = f"file {shown(file_id)} is read by {reader}: cancel that, or wait for its end"
            raise ApiError(409, message, param="file_id", code="file_in_use")
        return FileDeleted(id=file_id)

    return router


def viewer() -> str | None:
    """The name of the key that asks; None where none is needed."""
    here = trail.current()
    return None if here is None else here.key


async def _taken(http: Request, store: Store, most_bytes: int) -> FileObject:
    """An upload as a file of the store's; it is there when this returns, or it never was."""
    file_id = new_id("file-")
    where = store.upload_path(file_id)
    path = store.folder / where
    form = await received(http, path, path.with_name(path.name + PART), most_bytes, _check)
    try:
        if "purpose" not in form.fields:
            message = "purpose is missing: it is required"
            raise ApiError(400, message, param="purpose", code="missing_required_parameter")
        assert form.filename is not None
        size = (await asyncio.to_thread(path.stat)).st_size
        made = FileObject(
            id=file_id, bytes=size, created_at=now(), filename=form.filename, purpose="batch"
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise

    def keep(record: FileRecord) -> None:
        try:
            store.add_file(record)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    with room():
        await to_its_end(keep, FileRecord(made, viewer(), where))
    return made


def _check(name: str, value: str) -> None:
    """The fields of an upload beside its file."""
    if name != "purpose":
        message = f"unknown parameter {shown(name)}: leave it out"
        raise ApiError(400, message, param=name, code="unknown_parameter")
    if value != "batch":
        message = f"purpose is {shown(value)}: not supported; the only purpose is 'batch'"
        raise ApiError(400, message, param="purpose", code="unsupported_value")
