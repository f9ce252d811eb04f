"""What each endpoint puts into its stream."""

from collections.abc import Sequence
from typing import Any

import orjson

from tpuinfer.engine.request import Delta
from tpuinfer.server.job import Job
from tpuinfer.server.logprobs import Scored, chat_logprobs, completion_logprobs
from tpuinfer.server.spoken import Part
from tpuinfer.server.stream import Frames
from tpuinfer.server.whole import ending, opened

_FIRST = b'"delta":{"role":"assistant","content":""}'
_NOTHING = b'"delta":{}'


class ChatChunks:
    """/v1/chat/completions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._frames = Frames(job, "chat.completion.chunk")
        self._index = {request.request_id: i for i, request in enumerate(job.requests)}
        self._spoken = [
            job.spoken(index) if job.spoken is not None else None
            for index in range(len(job.requests))
        ]

    def opening(self) -> bytes:
        return b"".join(self._frames.chunk(index, _FIRST) for index in self._index.values())

    def step(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join([self._pieces(delta) for delta in deltas])

    def closing(self) -> bytes:
        return self._frames.closing()

    def _pieces(self, delta: Delta) -> bytes:
        index, frames = self._index[delta.request_id], self._frames
        frames.completion_tokens += len(delta.token_ids)
        if self._spoken[index] is None and not self._job.logprobs and delta.finish_reason is None:
            if not delta.text:
                return b""
            return frames.chunk(index, b'"delta":{"content":' + orjson.dumps(delta.text) + b"}")
        return self._rarer(index, delta)

    def _rarer(self, index: int, delta: Delta) -> bytes:
        """All that is not a piece of text and nothing else."""
        self._job.require_sound(delta)
        parts: list[Part] = [{"content": delta.text}] if delta.text else []
        if (spoken := self._spoken[index]) is not None:
            parts = spoken.push(delta.text) if delta.text else []
            parts += spoken.finish() if delta.finish_reason is not None else ()
        logprobs: dict[str, Any] | None = None
        if self._job.logprobs and delta.token_ids:
            logprobs = chat_logprobs(self._job.tokenizer, Scored.answer(delta))
            parts = parts or [{"content": ""} if spoken is None else {}]
        chunks = []
        for part in parts:
            chunks.append(self._frames.chunk(index, b'"delta":' + orjson.dumps(part), logprobs))
            logprobs = None
        if delta.finish_reason is not None:
            called = spoken is not None and spoken.called
            chunks.append(self._frames.chunk(index, _NOTHING, None, ending(delta, called=called)))
        return b"".join(chunks)


class CompletionChunks:
    """/v1/completions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._frames = Frames(job, "text_completion")
        self._index = {request.request_id: i for i, request in enumerate(job.requests)}
        self._offset = [0] * len(job.requests)
        self._opened = [job.echo is None and not job.silent] * len(job.requests)

    def opening(self) -> bytes:
        return b""

    def step(self, deltas: Sequence[Delta]) -> bytes:
        return b"".join([self._piece(delta) for delta in deltas])

    def closing(self) -> bytes:
        return self._frames.closing()

    def _piece(self, delta: Delta) -> bytes:
        index = self._index[delta.request_id]
        if not self._job.silent:
            self._frames.completion_tokens += len(delta.token_ids)
        if self._opened[index] and not self._job.logprobs and delta.finish_reason is None:
            if not delta.text:
                return b""
            return self._frames.chunk(index, b'"text":' + orjson.dumps(delta.text))
        return self._rarer(index, delta)

    def _rarer(self, index: int, delta: Delta) -> bytes:
        """All that is not a piece of text and nothing else."""
        job = self._job
        job.require_sound(delta)
        text, scored = delta.text, Scored.answer(delta)
        if not self._opened[index]:
            self._opened[index] = True
            text, scored = opened(job, index, delta)
        logprobs = None
        if job.logprobs and scored.token_ids:
            logprobs = completion_logprobs(job.tokenizer, scored, self._offset[index])
            self._offset[index] += sum(map(len, logprobs["tokens"]))
        if not (text or logprobs or delta.finish_reason):
            return b""
        end = ending(delta, silent=job.silent) if delta.finish_reason is not None else None
        return self._frames.chunk(index, b'"text":' + orjson.dumps(text), logprobs, end)
