"""`/v1/models`: what is served, how long its context is, and which weights it runs on."""

from fastapi import APIRouter

from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.replies import ERRORS, ModelCard, ModelList


def models_router(bridge: Bridge, info: ServerInfo) -> APIRouter:
    """The routes; they answer before there is an engine too, without what only it knows."""
    router = APIRouter(prefix="/v1", responses=ERRORS)

    def card(name: str) -> ModelCard:
        ready = bridge.failure is None
        return ModelCard(
            id=name,
            created=info.created,
            root=info.model,
            max_model_len=bridge.context if ready else None,
            version=bridge.version if ready else None,
        )

    @router.get("/models")
    async def models() -> ModelList:
        """Every name that a request may give."""
        return ModelList(data=[card(name) for name in info.names])

    @router.get("/models/{model:path}")
    async def model(model: str) -> ModelCard:
        """One of them."""
        info.require(model)
        return card(model)

    return router
