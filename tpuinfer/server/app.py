"""The routes: OpenAI's endpoints, and what an operator's probes ask for."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tpuinfer.server import exporter, failures
from tpuinfer.server.bridge import Answers, Bridge
from tpuinfer.server.failures import ApiError, EngineDeadError
from tpuinfer.server.intake import Job, chat_job, completion_job
from tpuinfer.server.protocol import ChatBody, CompletionBody
from tpuinfer.server.replies import (
    ChatCompletion,
    Completion,
    ErrorReply,
    Gathered,
    ModelCard,
    ModelList,
    chat_reply,
    completion_reply,
)
from tpuinfer.server.stream import ChatChunks, CompletionChunks, EventStream

CLIENT_GONE = 499
"""What a log shows for a request whose client did not wait; nobody receives it."""

_STREAM_SCHEMA = {
    "description": "One JSON body, or server-sent events when `stream` is true.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request cannot be served as asked."},
    "5XX": {"model": ErrorReply, "description": "The server cannot serve it now."},
}
_REASON = {"description": "Why not, in one line.", "content": {"text/plain": {}}}


@dataclass(frozen=True)
class ServerInfo:
    """What the server says about itself.

    Attributes:
      model: the name it serves. aliases: further names that a request may give.
      created: seconds since the epoch.

    """

    model: str
    aliases: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    def require(self, name: str) -> str:
        """The served name for `name`; raises ApiError 404 for any other."""
        names = (self.model, *self.aliases)
        if name not in names:
            served = ", ".join(map(repr, names))
            message = f"model {name!r} does not exist: this server serves {served}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.model


def create_app(bridge: Bridge, info: ServerInfo) -> FastAPI:
    """The application; it may run before `bridge` has an engine, and stops `bridge` at its end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(bridge.stop)

    app = FastAPI(title="tpuinfer", lifespan=lifespan, docs_url=None, redoc_url=None)
    failures.install(app)
    app.include_router(_answers(bridge, info))
    app.include_router(_models(info))
    app.include_router(_probes(bridge))
    return app


def _answers(bridge: Bridge, info: ServerInfo) -> APIRouter:
    router = APIRouter(prefix="/v1", responses={200: _STREAM_SCHEMA, **_ERRORS})

    @router.post("/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatBody, http: Request) -> Response:
        job = await chat_job(body, info.require(body.model), bridge)
        answers = await bridge.submit(job.requests)
        if job.stream:
            return EventStream(answers, ChatChunks(job))
        gathered = await _gather_while_wanted(http, answers, job)
        return _json(chat_reply(job, gathered)) if gathered else Response(status_code=CLIENT_GONE)

    @router.post("/completions", response_model=Completion)
    async def completions(body: CompletionBody, http: Request) -> Response:
        job = await completion_job(body, info.require(body.model), bridge)
        answers = await bridge.submit(job.requests)
        if job.stream:
            return EventStream(answers, CompletionChunks(job))
        gathered = await _gather_while_wanted(http, answers, job)
        if not gathered:
            return Response(status_code=CLIENT_GONE)
        return _json(completion_reply(job, gathered))

    return router


def _models(info: ServerInfo) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=_ERRORS)

    @router.get("/models")
    async def models() -> ModelList:
        names = (info.model, *info.aliases)
        return ModelList(data=[ModelCard(id=name, created=info.created) for name in names])

    @router.get("/models/{model:path}")
    async def model(model: str) -> ModelCard:
        info.require(model)
        return ModelCard(id=model, created=info.created)

    return router


def _probes(bridge: Bridge) -> APIRouter:
    router = APIRouter()
    own = exporter.registry(bridge)

    @router.get("/health", response_class=PlainTextResponse, responses=_ERRORS)
    async def health() -> Response:
        """Whether the process is worth keeping: 200 unless the engine died."""
        if isinstance(bridge.failure, EngineDeadError):
            return failures.error_response(bridge.failure)
        return PlainTextResponse("alive")

    @router.get("/ready", response_class=PlainTextResponse, responses={503: _REASON})
    async def ready() -> Response:
        """Whether requests are taken: 200, or 503 and why not."""
        if bridge.failure is None:
            return PlainTextResponse("ready")
        return PlainTextResponse(str(bridge.failure), 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The engine's counters in Prometheus' format."""
        return Response(generate_latest(own), media_type=CONTENT_TYPE_LATEST)

    return router


async def _gather_while_wanted(
    http: Request, answers: Answers, job: Job
) -> Sequence[Gathered] | None:
    """All of the answer, or None as soon as the client is gone; its slots are free then."""
    work = asyncio.ensure_future(_gather(answers, job))
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()
        answers.close()


async def _gather(answers: Answers, job: Job) -> Sequence[Gathered]:
    gathered = {request.request_id: Gathered() for request in job.requests}
    async for deltas in answers:
        for delta in deltas:
            gathered[delta.request_id].add(delta)
    return list(gathered.values())


async def _gone(http: Request) -> None:
    """Wait for the client to hang up: the body has been read, so nothing else can come."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _json(reply: ChatCompletion | Completion) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json")
