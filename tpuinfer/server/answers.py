"""`/v1/chat/completions` and `/v1/completions`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Request, Response

from tpuinfer.engine.request import Delta
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.chunks import ChatChunks, CompletionChunks
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.intake import Intake
from tpuinfer.server.job import Job
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.replies import ERRORS, ChatCompletion, Completion
from tpuinfer.server.speech import Speech
from tpuinfer.server.stream import CLIENT_GONE, Chunks, EventStream, while_wanted
from tpuinfer.server.whole import chat_reply, completion_reply, gather

_STREAM_SCHEMA = {
    "description": "One JSON body, or server-sent events when `stream` is true.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}

Encode = Callable[[Job, Sequence[Delta]], bytes]


def answers_router(bridge: Bridge, info: ServerInfo, speech: Speech | None = None) -> APIRouter:
    """The routes; `speech`: how the model writes, by default as its chat template tells."""
    router = APIRouter(prefix="/v1", responses={200: _STREAM_SCHEMA, **ERRORS})
    intake = Intake(bridge, speech or Speech(bridge))

    @router.post(
        "/chat/completions", response_model=ChatCompletion, openapi_extra=described(ChatBody)
    )
    async def chat_completions(
        http: Request, body: Annotated[ChatBody, json_body(ChatBody)]
    ) -> Response:
        """Answer a chat."""
        job = await intake.chat(body, info.require(body.model))
        return await _answer(http, bridge, job, ChatChunks, chat_reply)

    @router.post("/completions", response_model=Completion, openapi_extra=described(CompletionBody))
    async def completions(
        http: Request, body: Annotated[CompletionBody, json_body(CompletionBody)]
    ) -> Response:
        """Continue a text."""
        job = await intake.completion(body, info.require(body.model))
        return await _answer(http, bridge, job, CompletionChunks, completion_reply)

    return router


async def _answer(
    http: Request, bridge: Bridge, job: Job, chunks: Callable[[Job], Chunks], encode: Encode
) -> Response:
    answers = await bridge.submit(job.requests)
    if job.stream:
        return EventStream(answers, chunks(job))
    try:
        gathered = await while_wanted(http.receive, gather(answers, job))
    finally:
        answers.close()
    if gathered is None:
        return Response(status_code=CLIENT_GONE)
    return Response(await _encoded(job, gathered, encode), media_type="application/json")


async def _encoded(job: Job, gathered: Sequence[Delta], encode: Encode) -> bytes:
    """Many log-probabilities, or text that must be read, take a while: off the event loop."""
    if job.logprobs or job.spoken is not None:
        return await asyncio.to_thread(encode, job, gathered)
    return encode(job, gathered)
