"""`/v1/chat/completions` and `/v1/completions`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Request, Response

from tpuinfer.engine.request import Delta
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.chunks import ChatChunks, CompletionChunks
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.intake import Intake
from tpuinfer.server.job import Job, Origin
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.replies import ERRORS, ChatCompletion, Completion
from tpuinfer.server.sampling_body import SamplingBody
from tpuinfer.server.speech import Speech
from tpuinfer.server.stream import CLIENT_GONE, Chunks, EventStream, while_wanted
from tpuinfer.server.whole import chat_reply, completion_reply, gather

_STREAM_SCHEMA = {
    "description": "One JSON body, or server-sent events when `stream` is true.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

B = TypeVar("B", bound=SamplingBody)


@dataclass(frozen=True)
class Endpoint(Generic[B]):
    """One way to ask for text, over HTTP or in a batch.

    Attributes:
      kind: its body. take: makes a job of a validated one, for the model of that name.
      chunks: how it streams. encode: the JSON of a whole answer.
    """

    path: str
    kind: type[B]
    take: Callable[[Intake, B, str, Origin], Awaitable[Job]]
    chunks: Callable[[Job], Chunks]
    encode: Callable[[Job, Sequence[Delta]], bytes]

    async def job(self, intake: Intake, info: ServerInfo, body: B, origin: Origin) -> Job:
        """What the engine is to do. Raises like `Intake`, and for a model that is not served."""
        return await self.take(intake, body, info.require(body.model), origin)

    async def reply(self, job: Job, gathered: Sequence[Delta]) -> bytes:
        """The JSON of an answer: off the event loop if it takes a while.

        That is so of many log-probabilities, and of text that must be read.
        """
        if job.logprobs or job.spoken is not None:
            return await asyncio.to_thread(self.encode, job, gathered)
        return self.encode(job, gathered)


CHAT = Endpoint("/v1/chat/completions", ChatBody, Intake.chat, ChatChunks, chat_reply)
COMPLETION = Endpoint(
    "/v1/completions", CompletionBody, Intake.completion, CompletionChunks, completion_reply
)


def answers_router(bridge: Bridge, info: ServerInfo, speech: Speech | None = None) -> APIRouter:
    """The routes; `speech`: how the model writes, by default as its chat template tells."""
    router = APIRouter(responses={200: _STREAM_SCHEMA, **ERRORS})
    intake = Intake(bridge, speech or Speech(bridge))

    @router.post(CHAT.path, response_model=ChatCompletion, openapi_extra=described(ChatBody))
    async def chat_completions(
        http: Request, body: Annotated[ChatBody, json_body(ChatBody)]
    ) -> Response:
        """Answer a chat."""
        return await _answer(http, bridge, CHAT, await CHAT.job(intake, info, body, Origin()))

    @router.post(
        COMPLETION.path, response_model=Completion, openapi_extra=described(CompletionBody)
    )
    async def completions(
        http: Request, body: Annotated[CompletionBody, json_body(CompletionBody)]
    ) -> Response:
        """Continue a text."""
        job = await COMPLETION.job(intake, info, body, Origin())
        return await _answer(http, bridge, COMPLETION, job)

    return router


async def _answer(http: Request, bridge: Bridge, endpoint: Endpoint[Any], job: Job) -> Response:
    answers = await bridge.submit(job.requests)
    if job.stream:
        return EventStream(answers, endpoint.chunks(job))
    try:
        gathered = await while_wanted(http.receive, gather(answers, job.requests))
    finally:
        answers.close()
    if gathered is None:
        return Response(status_code=CLIENT_GONE)
    return Response(await endpoint.reply(job, gathered), media_type="application/json")
