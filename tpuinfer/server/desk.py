"""The server's answers without HTTP: the same validation, the same engine, the same bytes.

A desk answers what is not sent over a connection, the lines of a batch. It differs from a route in
that it is patient. Where a route says 503 because a queue is full, it waits; where the engine takes
a slot away from a background request, it asks again for what that slot held.
"""

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from tpuinfer.engine.request import Delta, Request
from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.errors import TpuinferError
from tpuinfer.offline.task import LineError, Outcome, Stamp
from tpuinfer.server.answers import CHAT, COMPLETION, Endpoint
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.door import Note
from tpuinfer.server.embeddings import PATH as EMBEDDINGS
from tpuinfer.server.embeddings import EmbeddingBody, embed
from tpuinfer.server.encoding import MOST_AT_ONCE
from tpuinfer.server.failures import ApiError, EngineDeadError, NotReadyError, as_api_error
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.intake import Intake
from tpuinfer.server.job import Job, Origin
from tpuinfer.server.receive import parsed
from tpuinfer.server.speech import Speech
from tpuinfer.server.stream import CLIENT_GONE
from tpuinfer.server.trail import Trail, during
from tpuinfer.server.whole import completion_tokens, gather

_log = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT: dict[str, Endpoint[Any]] = {one.path: one for one in (CHAT, COMPLETION)}

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 1.0
"""Between two tries where a queue is full, seconds; each is twice the one before."""

_LEAST_SPARE = 2
"""Requests beyond the slots that are on their way to one or from one."""


class Desk:
    """An `offline.task.Answerer` over one bridge; belongs to the event loop."""

    def __init__(
        self,
        bridge: Bridge,
        info: ServerInfo,
        speech: Speech,
        *,
        background: bool,
        notes: Sequence[Note] = (),
        key: str | None = None,
    ) -> None:
        """A desk that may be there before the engine is.

        Args:
          background: whether its requests give way to those that come over HTTP.
          notes: told of every line that was answered, as the door tells of HTTP requests.
          key: who asks, for them; as `trail.key_name` writes it.
        """
        self._bridge = bridge
        self._info = info
        self._intake = Intake(bridge, speech)
        self._background = background
        self._notes = notes
        self._key = key
        self._places: asyncio.Semaphore | None = None

    @property
    def width(self) -> int:
        """Lines that keep the machine busy: as many as slots, and those that will be next.

        Of an encoder two full calls. Raises NotReadyError or EngineDeadError where there is none.
        """
        slots = self._bridge.slots
        return slots + max(_LEAST_SPARE, slots // 4) if slots else 2 * MOST_AT_ONCE

    async def answer(self, url: str, body: bytes, stamp: Stamp) -> Outcome:
        """The answer to one request, byte for byte what HTTP would say but for ids and dates.

        Raises:
          NotReadyError, EngineDeadError: nothing can be answered any more.
        """
        here = Trail(stamp.name, "POST", url, route=f"{url} (batch)", key=self._key)
        here.status = CLIENT_GONE
        with during(here):
            try:
                outcome = await self._outcome(url, body, stamp, here)
                here.status = outcome.status
                return outcome
            except (NotReadyError, EngineDeadError) as error:
                here.status = as_api_error(error).status
                raise
            finally:
                here.end = time.monotonic()
                for note in self._notes:
                    note(here)

    def refuse(self, error: LineError) -> Outcome:
        """The error object of a line that is no request."""
        return Outcome(400, ApiError(400, str(error), param=error.param, code=error.code).body())

    async def _outcome(self, url: str, body: bytes, stamp: Stamp, here: Trail) -> Outcome:
        try:
            if url == EMBEDDINGS:
                return await self._vectors(body)
            if (endpoint := _TEXT.get(url)) is None:
                served = ", ".join((*_TEXT, EMBEDDINGS))
                message = f"url is {url!r}: it must be one of {served}"
                raise ApiError(400, message, param="url", code="invalid_url")
            return await self._text(endpoint, body, self._origin(stamp), here)
        except (NotReadyError, EngineDeadError):
            raise
        except Exception as error:
            api = as_api_error(error)
            if api.code == "internal_error":
                _log.exception("a line of a batch failed, request %s", stamp.name)
            return Outcome(api.status, api.body())

    def _origin(self, stamp: Stamp) -> Origin:
        began = datetime.datetime.fromtimestamp(stamp.created, datetime.UTC)
        return Origin(stamp.name, stamp.created, stamp.seed, self._background, began.strftime)

    async def _vectors(self, raw: bytes) -> Outcome:
        body = await parsed(raw, EmbeddingBody)
        encoded = await _patiently(
            partial(embed, self._bridge, self._info, body, background=self._background)
        )
        return Outcome(200, encoded.body, prompt_tokens=encoded.tokens)

    async def _text(
        self, endpoint: Endpoint[Any], raw: bytes, origin: Origin, here: Trail
    ) -> Outcome:
        body = await parsed(raw, endpoint.kind)
        if body.stream:
            message = "stream is true: nobody reads along in a batch; leave it out"
            raise ApiError(400, message, param="stream", code="unsupported_value")
        job = await _patiently(partial(endpoint.job, self._intake, self._info, body, origin))
        gathered = await self._choices(job)
        here.settled(job.requests, gathered)
        reply = await endpoint.reply(job, gathered)
        return Outcome(200, reply, job.prompt_tokens, completion_tokens(job, gathered))

    async def _choices(self, job: Job) -> list[Delta]:
        """All choices, each at its own pace. Of several that fail the first one's error is raised.

        It is waited for the others then: which one is named must not depend on who was faster.
        """
        if len(job.requests) == 1:
            return [await self._choice(job.requests[0])]
        ends = await asyncio.gather(*map(self._choice, job.requests), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return [end for end in ends if isinstance(end, Delta)]

    async def _choice(self, request: Request) -> Delta:
        """One choice, whole, however often its slot was taken away."""
        name, tries = request.request_id, 1
        while True:
            async with self._place():
                whole = await _patiently(partial(self._asked, request))
            if whole.finish_reason != "preempted":
                return whole
            again = f"{name}.{tries}"
            request = await _patiently(partial(self._intake.again, request, again))
            tries += 1

    async def _asked(self, request: Request) -> Delta:
        answers = await self._bridge.submit([request])
        try:
            [whole] = await gather(answers, [request])
        finally:
            answers.close()
        return whole

    def _place(self) -> asyncio.Semaphore:
        """One of as many as `width`: a line of many choices must not fill the engine's queue."""
        if self._places is None:
            self._places = asyncio.Semaphore(self.width)
        return self._places


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives once there is room for it."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return await ask()
        except TpuinferError as error:
            if not _is_for_now(error):
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_for_now(error: TpuinferError) -> bool:
    """Whether the same request may be asked again: a queue was full."""
    return isinstance(error, QueueFullError) or (
        isinstance(error, ApiError) and error.code == "queue_full"
    )
