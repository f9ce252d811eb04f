"""Server-sent events: one `data: {json}` and a blank line each, `data: [DONE]` at the end.

A stream of either endpoint is: opening, chunks, closing. The openai clients read

    chat         a chunk with the role for each choice; content; a chunk with the finish reason
    completions  text, the last chunk of a choice with the finish reason
    both         when asked, a chunk that counts the tokens and has no choices; [DONE]

Text that is held back, because it may become a stop string or is part of a character, makes no
chunk, unless log-probabilities were asked for: every token has its own then.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tpuinfer.engine.request import Delta
from tpuinfer.server.bridge import Answers
from tpuinfer.server.failures import as_api_error
from tpuinfer.server.job import Job
from tpuinfer.server.whole import usage

_log = logging.getLogger(__name__)

T = TypeVar("T")

CLIENT_GONE = 499
"""What a log shows for a request whose client did not wait; nobody receives it."""

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_GOES_ON = b',"logprobs":null,"finish_reason":null'


class Frames:
    """Encodes the chunks of one stream and counts its tokens.

    A chunk is mostly the same bytes each time, so these are encoded once: only what is new costs.
    """

    def __init__(self, job: Job, kind: str) -> None:
        head = {"id": job.answer_id, "object": kind, "created": job.created, "model": job.model}
        self._head = b"data: " + orjson.dumps(head)[:-1]
        self._choice = [
            self._head + b',"choices":[{"index":%d,' % index for index in range(len(job.requests))
        ]
        self._running = job.usage_in_chunks
        self._final = job.include_usage
        self._tail = b'}],"usage":null}\n\n' if job.include_usage else b"}]}\n\n"
        self._prompt_tokens = job.prompt_tokens
        self.completion_tokens = 0

    def chunk(self, index: int, field: bytes, logprobs: Any = None, ending: Any = None) -> bytes:
        """One choice's piece: `field` is `"name":value` in JSON."""
        rest = _GOES_ON
        if logprobs is not None or ending is not None:
            fields = {"logprobs": logprobs, "finish_reason": None} | (ending or {})
            rest = b"," + orjson.dumps(fields)[1:-1]
        tail = b'}],"usage":' + self._usage() + b"}\n\n" if self._running else self._tail
        return self._choice[index] + field + rest + tail

    def closing(self) -> bytes:
        """What ends a stream that went well."""
        if not self._final:
            return DONE
        return self._head + b',"choices":[],"usage":' + self._usage() + b"}\n\n" + DONE

    def _usage(self) -> bytes:
        return orjson.dumps(usage(self._prompt_tokens, self.completion_tokens))


class Chunks(Protocol):
    """How one endpoint streams."""

    def opening(self) -> bytes: ...

    def step(self, deltas: Sequence[Delta]) -> bytes:
        """The chunks of some deltas, possibly none. Raises ApiError if a request failed."""

    def closing(self) -> bytes: ...


class EventStream(StreamingResponse):
    """A stream that aborts what is unfinished however it ends: read to the end, or client gone."""

    def __init__(self, answers: Answers, chunks: Chunks) -> None:
        super().__init__((), 200, HEADERS, "text/event-stream")
        self._answers = answers
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(client_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            self._answers.close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        if opening := self._chunks.opening():
            await send(_part(opening))
        last = await self._send_steps(send)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _send_steps(self, send: Send) -> bytes:
        """What is left to say when all is sent, or when something failed.

        The headers are long gone by then, so a failure is an event of its own.
        """
        step = self._chunks.step
        try:
            async for deltas in self._answers:
                if any(delta.prompt_logprobs for delta in deltas):  # as long as a prompt
                    pieces = await asyncio.to_thread(step, deltas)
                else:
                    pieces = step(deltas)
                if pieces:
                    await send(_part(pieces))
            return self._chunks.closing()
        except Exception as error:
            _log.warning("a stream ended early: %r", error)
            return b"data: " + as_api_error(error).body() + b"\n\n" + DONE


async def client_gone(receive: Receive) -> None:
    """Wait for the client to hang up: the body has been read, so nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_wanted(receive: Receive, wanted: Awaitable[T]) -> T | None:
    """What `wanted` gives; None as soon as the client is gone, and then it is cancelled."""
    work = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(client_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
