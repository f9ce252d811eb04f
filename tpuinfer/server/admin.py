"""`/admin/*`: other weights without a restart, and profiles. Each needs an admin key.

What the routes do is handed in: this room knows neither checkpoints nor profilers.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from tpuinfer.errors import RequestError, TpuinferError
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import Range, StrictBody, Text
from tpuinfer.server.receive import described, json_body
from tpuinfer.server.replies import ERRORS, Reply

_log = logging.getLogger(__name__)

MAX_PROFILE_SECONDS = 60


@dataclass(frozen=True)
class Operations:
    """What an operator's front door lets the admin routes do; None: it does not.

    Attributes:
      weights: reads a checkpoint, named below the folder that reloads may read, for the mesh.
      profile: records the devices for so many seconds; returns the name of the recording.
    """

    weights: Callable[[str], Any] | None = None
    profile: Callable[[float], str] | None = None


class ReloadBody(StrictBody):
    """POST /admin/reload."""

    path: Annotated[Text, Field(min_length=1, max_length=1024)] = Field(
        description="A checkpoint directory, by its name below --reload-root."
    )


class ProfileBody(StrictBody):
    """POST /admin/profile."""

    seconds: Annotated[float, Range(0, MAX_PROFILE_SECONDS, above=True)] = 1.0


class Reloaded(Reply):
    version: int
    path: str


class Profiled(Reply):
    name: str
    seconds: float


def admin_router(bridge: Bridge, does: Operations) -> APIRouter:
    """The routes. One reload, and one profile, at a time."""
    router = APIRouter(prefix="/admin", responses=ERRORS)
    reloading, profiling = asyncio.Lock(), asyncio.Lock()

    @router.post("/reload", openapi_extra=described(ReloadBody))
    async def reload(body: Annotated[ReloadBody, json_body(ReloadBody)]) -> Reloaded:
        """Go on with other weights; requests in flight keep the old ones.

        Whatever fails leaves the old ones in place.
        """
        if does.weights is None:
            raise _off("reloads", "--reload-root DIR")
        _ = bridge.vocab  # an encoder's weights stay
        async with _alone(reloading, "a reload"):
            try:
                params = await asyncio.to_thread(does.weights, body.path)
            except TpuinferError as error:
                _log.warning("reload of %r: %s", body.path, error)
                message = (
                    f"path is {body.path!r}: there is no checkpoint that fits; the log has why"
                )
                raise RequestError(message, param="path") from None
            version = await bridge.update(params)
        _log.info("weights version %d from %r", version, body.path)
        return Reloaded(version=version, path=body.path)

    @router.post("/profile", openapi_extra=described(ProfileBody))
    async def profile(body: Annotated[ProfileBody, json_body(ProfileBody)]) -> Profiled:
        """Record what the devices do for a while, into the folder of --profile-dir."""
        if does.profile is None:
            raise _off("profiles", "--profile-dir DIR")
        async with _alone(profiling, "a profile"):
            name = await asyncio.to_thread(does.profile, body.seconds)
        return Profiled(name=name, seconds=body.seconds)

    return router


class _alone:  # noqa: N801 - reads as a verb
    """Holds a lock that is free, and refuses with 409 what finds it taken."""

    def __init__(self, lock: asyncio.Lock, what: str) -> None:
        self._lock = lock
        self._what = what

    async def __aenter__(self) -> None:
        if self._lock.locked():
            raise ApiError(409, f"{self._what} is under way: wait for it", code="busy")
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def _off(what: str, flag: str) -> ApiError:
    message = f"this server does no {what}: start it with {flag}"
    return ApiError(403, message, kind="permission_error", code="not_enabled")
