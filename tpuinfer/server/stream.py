"""Server-sent events: one `data: {json}` and a blank line each, `data: [DONE]` at the end.

A stream of either endpoint is: opening, chunks, closing. The openai clients read

    chat         a chunk with the role for each choice; content; a chunk with the finish reason
    completions  text, the last chunk of a choice with the finish reason
    both         when asked, a chunk that counts the tokens and has no choices; [DONE]

Text that is held back, because it may become a stop string or is part of a character, makes no
chunk, unless log-probabilities were asked for: every token has its own then.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tpuinfer.engine.request import Delta
from tpuinfer.server.bridge import Answers
from tpuinfer.server.failures import as_api_error
from tpuinfer.server.intake import Job
from tpuinfer.server.replies import Usage, chat_logprobs, completion_logprobs

_log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Frames:
    """Encodes the chunks of one stream and counts its tokens."""

    def __init__(self, job: Job, kind: str) -> None:
        self._head = {
            "id": job.answer_id,
            "object": kind,
            "created": job.created,
            "model": job.model,
        }
        self._asked = job.include_usage or job.usage_in_chunks
        self._running = job.usage_in_chunks
        self._final = job.include_usage
        self._prompt_tokens = job.prompt_tokens
        self.completion_tokens = 0

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One choice's piece; the count so far, or null, stands in each when usage was asked."""
        fields = self._head | {"choices": [choice]}
        if self._asked:
            fields["usage"] = self._usage() if self._running else None
        return _event(fields)

    def closing(self) -> bytes:
        """What ends a stream that went well."""
        if not self._final:
            return DONE
        return _event(self._head | {"choices": [], "usage": self._usage()}) + DONE

    def _usage(self) -> dict[str, Any]:
        return Usage.of(self._prompt_tokens, self.completion_tokens).model_dump()


class Chunks(Protocol):
    """How one endpoint streams."""

    def opening(self) -> bytes: ...

    def step(self, deltas: Sequence[Delta]) -> bytes:
        """The chunks of some deltas, possibly none."""

    def closing(self) -> bytes: ...


class ChatChunks:
    """/v1/chat/completions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._frames = Frames(job, "chat.completion.chunk")
        self._index = {request.request_id: i for i, request in enumerate(job.requests)}

    def opening(self) -> bytes:
        first = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, first) for index in self._index.values())

    def step(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join(self._pieces(delta) for delta in deltas)

    def closing(self) -> bytes:
        return self._frames.closing()

    def _pieces(self, delta: Delta) -> bytes:
        index = self._index[delta.request_id]
        self._frames.completion_tokens += len(delta.token_ids)
        logprobs = None
        if self._job.logprobs and delta.token_ids:
            shown = chat_logprobs(self._job.tokenizer, delta.token_ids, delta.logprobs or ())
            logprobs = shown.model_dump()
        pieces = b""
        if delta.text or logprobs:
            pieces = self._chunk(index, {"content": delta.text}, logprobs)
        if delta.finish_reason is not None:
            pieces += self._chunk(index, {}, None, delta.finish_reason, delta.stop_reason)
        return pieces

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        if finish_reason is not None:
            choice["stop_reason"] = stop_reason
        return self._frames.chunk(choice)


class CompletionChunks:
    """/v1/completions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._frames = Frames(job, "text_completion")
        self._index = {request.request_id: i for i, request in enumerate(job.requests)}
        self._offset = [0] * len(job.requests)

    def opening(self) -> bytes:
        return b""

    def step(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join(self._piece(delta) for delta in deltas)

    def closing(self) -> bytes:
        return self._frames.closing()

    def _piece(self, delta: Delta) -> bytes:
        index = self._index[delta.request_id]
        self._frames.completion_tokens += len(delta.token_ids)
        logprobs = None
        if self._job.logprobs and delta.token_ids:
            shown = completion_logprobs(
                self._job.tokenizer, delta.token_ids, delta.logprobs or (), self._offset[index]
            )
            self._offset[index] += sum(map(len, shown.tokens))
            logprobs = shown.model_dump()
        if not (delta.text or logprobs or delta.finish_reason):
            return b""
        choice = {
            "index": index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return self._frames.chunk(choice)


class EventStream(StreamingResponse):
    """A stream that aborts what is unfinished however it ends: read to the end, or client gone."""

    def __init__(self, answers: Answers, chunks: Chunks) -> None:
        super().__init__(_events(answers, chunks), 200, HEADERS, "text/event-stream")
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


async def _events(answers: Answers, chunks: Chunks) -> AsyncIterator[bytes]:
    """The headers are long gone when something fails, so a failure is an event of its own."""
    try:
        if opening := chunks.opening():
            yield opening
        async for deltas in answers:
            if pieces := chunks.step(deltas):
                yield pieces
        yield chunks.closing()
    except Exception as error:
        _log.warning("a stream ended early: %r", error)
        yield b"data: " + as_api_error(error).body() + b"\n\n" + DONE


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
