"""The door that every HTTP request passes: its id, its trail, and one line about it at the end."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpuinfer.server import trail as trails
from tpuinfer.server.failures import error_response
from tpuinfer.server.trail import HttpCounts, Trail

_log = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Note = Callable[[Trail], None]


class Door:
    """ASGI middleware: X-Request-Id in and out, counters, and whoever takes note of what ended.

    A client's own id is kept if it is of letters, digits and ._:- and not too long.
    """

    def __init__(self, app: ASGIApp, counts: HttpCounts, notes: Sequence[Note] = ()) -> None:
        self._app = app
        self._counts = counts
        self._notes = notes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(scope["headers"])
        trail = Trail(name.decode(), scope["method"], scope["path"])
        trails.begin(trail)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                trail.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, name)]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            _log.exception("%s %r failed, request %s", trail.method, trail.path, trail.request_id)
            if trail.status:
                raise
            await error_response(error)(scope, receive, sent)
        finally:
            self._end(trail)

    def _end(self, trail: Trail) -> None:
        trail.end = time.monotonic()
        self._counts.add(trail)
        for note in self._notes:
            note(trail)


def _request_id(headers: Any) -> bytes:
    for name, value in headers:
        if name == REQUEST_ID and _SANE.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()
