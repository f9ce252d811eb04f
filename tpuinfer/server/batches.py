"""`/v1/batches`: many requests in one file, answered when there is room."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from tpuinfer.server.batch_runner import Runner
from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import Neutral, StrictBody, Text, few
from tpuinfer.server.files import viewer
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.paging import no_such, only, page_of
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.records import (
    WINDOW_SECONDS,
    BatchList,
    BatchObject,
    BatchRecord,
    Counts,
    moved,
    new_id,
    now,
)
from tpuinfer.server.replies import ERRORS
from tpuinfer.server.store import Page, Store
from tpuinfer.server.upload import room

MOST_OPEN = 1000
"""Batches of one key that have not ended; more are refused with 429."""

_MOST_LISTED = 100
_LISTED = 20

_PAIRS = 16
_KEY_CHARACTERS = 64
_VALUE_CHARACTERS = 512


def _short(metadata: dict[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if len(key) > _KEY_CHARACTERS or len(value) > _VALUE_CHARACTERS:
            rule = (
                f"a name may have {_KEY_CHARACTERS} characters, and its value {_VALUE_CHARACTERS}"
            )
            raise PydanticCustomError("out_of_range", "{rule}", {"rule": rule})
    return metadata


class BatchBody(StrictBody):
    """POST /v1/batches."""

    neutral: ClassVar[Neutral] = {"output_expires_after": ()}

    input_file_id: Text = Field(description="A file of requests, uploaded to /v1/files.")
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] = Field(
        description="Of all its requests."
    )
    completion_window: Literal["24h"]
    metadata: (
        Annotated[dict[Text, Text], few(_PAIRS), Field(max_length=_PAIRS), AfterValidator(_short)]
        | None
    ) = None


def batches_router(
    store: Callable[[], Store],
    runner: Callable[[], Runner],
    info: ServerInfo,
    require: Callable[[str], None],
) -> APIRouter:
    """The routes.

    Args:
      store, runner: give them, or raise ApiError where there are none.
      require: refuses an endpoint that the model has not, by raising, if that is known yet.
    """
    router = APIRouter(prefix="/v1/batches", responses=ERRORS)

    @router.post("", openapi_extra=described(BatchBody))
    async def create(body: Annotated[BatchBody, json_body(BatchBody)]) -> BatchObject:
        """Begin a batch of the requests in a file that was uploaded."""
        require(body.endpoint)
        kept, owner = store(), viewer()
        file = await asyncio.to_thread(kept.file, body.input_file_id, owner)
        if file is None:
            raise no_such("file", body.input_file_id, "input_file_id")
        if file.shown.purpose != "batch":
            message = (
                f"file {file.shown.id} has purpose {file.shown.purpose!r}: upload one of 'batch'"
            )
            raise ApiError(400, message, param="input_file_id", code="invalid_purpose")
        record = BatchRecord(_new(body, info.model), owner)
        try:
            with room():
                fits = await asyncio.to_thread(kept.add_batch, record, MOST_OPEN)
        except KeyError:
            raise no_such("file", body.input_file_id, "input_file_id") from None
        if not fits:
            message = f"you have {MOST_OPEN} batches that have not ended: wait, or cancel some"
            raise ApiError(429, message, kind="rate_limit_error", code="too_many_batches")
        runner().wake()
        return record.shown

    @router.get("", dependencies=[only("after", "limit")])
    async def batches(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = _LISTED,
    ) -> BatchList:
        """The batches, the newest first, a page at a time."""
        records = await asyncio.to_thread(store().batches, Page(after, limit), viewer())
        if records is None:
            raise no_such("batch", str(after), "after")
        shown = [runner().counts(record.shown) for record in records]
        return BatchList(**page_of(shown, limit))

    @router.get("/{batch_id}", dependencies=[only()])
    async def batch(batch_id: str) -> BatchObject:
        """One of them, as far as it is."""
        record = await asyncio.to_thread(store().batch, batch_id, viewer())
        if record is None:
            raise no_such("batch", batch_id, "batch_id")
        return runner().counts(record.shown)

    @router.post("/{batch_id}/cancel", dependencies=[only()])
    async def cancel(batch_id: str) -> BatchObject:
        """Begin nothing more of it; what is answered is kept."""
        kept = store()
        if await asyncio.to_thread(kept.batch, batch_id, viewer()) is None:
            raise no_such("batch", batch_id, "batch_id")
        with room():
            record = await asyncio.to_thread(kept.change, batch_id, _cancelling)
        runner().cancelled(batch_id)
        return runner().counts(record.shown)

    return router


def _new(body: BatchBody, model: str) -> BatchObject:
    created = now()
    return BatchObject(
        id=new_id("batch_"),
        endpoint=body.endpoint,
        model=model,
        input_file_id=body.input_file_id,
        status="validating",
        created_at=created,
        expires_at=created + WINDOW_SECONDS,
        request_counts=Counts(),
        metadata=body.metadata,
    )


def _cancelling(record: BatchRecord) -> BatchRecord:
    """Raises ApiError: it has ended. Cancelling twice is cancelling once."""
    status = record.shown.status
    if record.ended:
        message = f"batch {record.shown.id} is {status}: it has ended, and cannot be cancelled"
        raise ApiError(409, message, param="batch_id", code="batch_ended")
    if status == "cancelling":
        return record
    return replace(record, shown=moved(record.shown, "cancelling"))
