"""Files and batches, as OpenAI's API shows them and as this server keeps them."""

import time
import uuid
from dataclasses import dataclass
from typing import Literal

from tpuinfer.server.replies import Reply

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
"""What a batch stays for ever."""

WINDOW_SECONDS = 24 * 60 * 60


class FileObject(Reply):
    """A file: what a client sent (`batch`), or what a batch gave (`batch_output`)."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class FileList(Reply):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Reply):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Complaint(Reply):
    """Why a batch failed; `line` counts from 1 in the input file."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


class Complaints(Reply):
    object: Literal["list"] = "list"
    data: list[Complaint]


class Counts(Reply):
    """Lines of a batch: how many there are, were answered, and were refused."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(Reply):
    """A batch. Its files have an id once it has ended, and only if there is something in them."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: Complaints | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts
    metadata: dict[str, str] | None = None


class BatchList(Reply):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class FileRecord:
    """A file and what only the server knows of it.

    Attributes:
      owner: the name of the key that made it; None if none was needed.
      path: where its bytes are, below the data folder.
    """

    shown: FileObject
    owner: str | None
    path: str


@dataclass(frozen=True)
class BatchRecord:
    """A batch and what only the server knows of it.

    Attributes:
      owner: the name of the key that made it; None if none was needed.
      identity: of the weights that its answers are made with; None until the first is.
    """

    shown: BatchObject
    owner: str | None
    identity: str | None = None

    @property
    def ended(self) -> bool:
        return self.shown.status in ENDED


def moved(batch: BatchObject, status: Status, **fields: object) -> BatchObject:
    """The batch in another status, whose time is now; the fields that are given change too."""
    stamped = {"status": status} | ({} if status == "validating" else {f"{status}_at": now()})
    return batch.model_copy(update=stamped | fields)


def now() -> int:
    """Seconds since the epoch, as the API counts."""
    return int(time.time())


def new_id(kind: Literal["file-", "batch_"]) -> str:
    """An id that nobody has, and nobody can guess."""
    return kind + uuid.uuid4().hex
