"""The application: every router, behind one door."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI

from tpuinfer.server import failures, receive
from tpuinfer.server.access import Keys, guard
from tpuinfer.server.admin import Operations, admin_router
from tpuinfer.server.answers import answers_router
from tpuinfer.server.batches import BatchBody
from tpuinfer.server.batching import Batching, Keeping
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.capabilities import capabilities_router
from tpuinfer.server.door import Door, Note
from tpuinfer.server.embeddings import EmbeddingBody, embeddings_router
from tpuinfer.server.fields import StrictBody
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.models import models_router
from tpuinfer.server.page import page_router
from tpuinfer.server.probes import probes_router
from tpuinfer.server.speech import Speech
from tpuinfer.server.tokens import tokens_router
from tpuinfer.server.trail import HttpCounts


@dataclass(frozen=True)
class ServerOptions:
    """What an operator decides about a server, beside its model.

    Attributes:
      keys: who may ask. notes: told of every request that has ended, in this order.
      closes: called once nothing is served any more, so that what waits to be written is written.
      operations: what the admin routes may do. versions: of the software, by name.
      tool_parser, reasoning_parser: names in `dialog.formats`, to be used instead of what the
        model's chat template shows.
      keeping: files and batches.
    """

    keys: Keys = field(default_factory=Keys)
    notes: Sequence[Note] = ()
    closes: Sequence[Callable[[], None]] = ()
    operations: Operations = field(default_factory=Operations)
    versions: Mapping[str, str] = field(default_factory=dict)
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    keeping: Keeping = field(default_factory=Keeping)


def create_app(bridge: Bridge, info: ServerInfo, options: ServerOptions | None = None) -> FastAPI:
    """The application; it may run before `bridge` has an engine, and stops `bridge` at its end."""
    chosen = options or ServerOptions()
    counts = HttpCounts()
    speech = Speech(
        bridge, tool_parser=chosen.tool_parser, reasoning_parser=chosen.reasoning_parser
    )

    batching = Batching(bridge, info, speech, chosen.keeping, chosen.notes)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batching.start()
        yield
        await batching.stop()
        await asyncio.to_thread(bridge.stop)
        for close in chosen.closes:
            await asyncio.to_thread(close)

    app = FastAPI(
        title="tpuinfer",
        version=chosen.versions.get("tpuinfer", "0"),
        lifespan=lifespan,
        dependencies=[guard(chosen.keys)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Door, counts=counts, notes=chosen.notes)
    failures.install(app)
    app.include_router(answers_router(bridge, info, speech))
    app.include_router(embeddings_router(bridge, info))
    app.include_router(tokens_router(bridge, info, speech))
    bodies: dict[str, type[StrictBody]] = {"/v1/embeddings": EmbeddingBody}
    if chosen.keeping.store is not None:
        bodies["/v1/batches"] = BatchBody
    app.include_router(capabilities_router(bridge, info, bodies))
    app.include_router(models_router(bridge, info))
    app.include_router(probes_router(bridge, info, counts, dict(chosen.versions), batching))
    for router in batching.routers():
        app.include_router(router)
    app.include_router(admin_router(bridge, chosen.operations))
    app.include_router(page_router())
    app.include_router(_document(app))
    return app


def _document(app: FastAPI) -> APIRouter:
    """/openapi.json, which needs a key like any other route."""
    router = APIRouter(include_in_schema=False)
    made: list[dict[str, Any]] = []

    @router.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        if not made:
            made.append(receive.complete(app.openapi()))
        return made[0]

    return router
