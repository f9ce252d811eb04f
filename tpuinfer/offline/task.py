"""The words of a batch: one line of work, its answer, and what answers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tpuinfer.errors import TpuinferError

_TRANSIENT = frozenset({408, 429, 503})


class BatchError(TpuinferError):
    """A batch that cannot be begun, or cannot go on as it is: what is done stays done."""

    exit_code = 9


class PassingError(BatchError):
    """The same batch goes on once something beside it is mended: a disk that is full."""


class LineError(TpuinferError):
    """A line of the input that is no request; the others are answered all the same.

    Attributes:
      param: the field at fault, if it is one. code: what is wrong, as OpenAI's error objects say.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the input.

    Attributes:
      position: its place among all lines of all inputs, from 0; blank lines have none.
      where: its place for a reader, "in.jsonl:12".
      custom_id: unique in the batch; None if the line has none that can be read.
      url: the endpoint, "/v1/chat/completions".
      body: the JSON object to be sent there.
      row: the fields of a plain input's row, which are handed on to the output; None of a request
        that was written as one.
      error: why the line is no request; `url` and `body` are empty then.
    """

    position: int
    where: str
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    row: Mapping[str, Any] | None = None
    error: LineError | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an answer has beside its content: the same in a resumed batch as in an unbroken one.

    Attributes:
      name: 32 hexadecimal digits, which answer ids end with.
      seed: for a request that sets none, [0, 2**32).
      created: when the batch was begun, seconds since the epoch.
    """

    name: str
    seed: int
    created: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended.

    Attributes:
      status: as HTTP has it; 200 is an answer.
      body: the JSON object of the answer, or `{"error": {...}}`.
      prompt_tokens, completion_tokens: of the answer, for those who count.
    """

    status: int
    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def transient(self) -> bool:
        """Whether the same request may be answered another time: nothing is wrong with it."""
        return self.status in _TRANSIENT


class Answerer(Protocol):
    """What answers requests, many at once; its calls belong to one event loop.

    Attributes:
      width: how many requests keep it busy.
    """

    @property
    def width(self) -> int: ...

    async def answer(self, url: str, body: bytes, stamp: Stamp) -> Outcome:
        """The answer to one request, or its error object.

        Cancelling it frees what the request held.

        Raises:
          TpuinferError: nothing can be answered any more, by anybody.
        """

    def refuse(self, error: LineError) -> Outcome:
        """What a line that is no request is answered with: status 400 and the error object."""


def stamp(custom_id: str, *, seed: int, created: int, batch: str = "") -> Stamp:
    """The stamp of a request, by its id and the batch's own seed.

    Args:
      batch: sets the names of one batch apart from those of another with the same ids; seeds are
        the same in both.
    """
    drawn = _digest(f"{seed}\0{custom_id}")
    named = _digest(f"{seed}\0{custom_id}\0{batch}") if batch else drawn
    return Stamp(named[4:20].hex(), int.from_bytes(drawn[:4], "little"), created)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
