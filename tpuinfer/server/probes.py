"""What an operator's machines ask: /health, /ready, /metrics and /version."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tpuinfer.server import exporter, failures
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.failures import EngineDeadError
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.replies import ERRORS, Reply
from tpuinfer.server.trail import HttpCounts

_REASON = {"description": "Why not, in one line.", "content": {"text/plain": {}}}


class Version(Reply):
    """What runs: the versions of the software by name, and the model."""

    version: str
    libraries: dict[str, str]
    model: str


def probes_router(
    bridge: Bridge,
    info: ServerInfo,
    http: HttpCounts,
    versions: dict[str, str],
    more: Collector | None = None,
) -> APIRouter:
    """The routes; they answer whether there is an engine or not. `more`: what is counted too."""
    router = APIRouter()
    own = exporter.registry(bridge, http, info.model)
    if more is not None:
        own.register(more)

    @router.get("/health", response_class=PlainTextResponse, responses=ERRORS)
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

    @router.get("/metrics", response_class=PlainTextResponse, responses=ERRORS)
    async def metrics() -> Response:
        """The engine's counters in Prometheus' format."""
        return Response(generate_latest(own), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version", responses=ERRORS)
    async def version() -> Version:
        """What runs here."""
        own_version = versions.get("tpuinfer", "unknown")
        others = {name: one for name, one in versions.items() if name != "tpuinfer"}
        return Version(version=own_version, libraries=others, model=info.model)

    return router
