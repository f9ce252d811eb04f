"""The chat page at `/`: a few static files, read once, that may run nothing but themselves."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

PAGE_PATHS: Sequence[str] = ("/", "/page/{name}")
"""The routes of the page. They hold no secret and are open to everyone."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_INDEX = "index.html"


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """Routes that serve the page; a browser asks again each time and mostly gets a 304."""
    router = APIRouter(include_in_schema=False)
    files = _files()

    @router.api_route(PAGE_PATHS[0], methods=["GET", "HEAD"])
    async def index(http: Request) -> Response:
        return _answer(http, files[_INDEX])

    @router.api_route(PAGE_PATHS[1], methods=["GET", "HEAD"])
    async def asset(name: str, http: Request) -> Response:
        if name not in files or name == _INDEX:
            raise HTTPException(404, "Not Found")
        return _answer(http, files[name])

    return router


def _files() -> dict[str, _File]:
    found = {}
    for entry in resources.files("tpuinfer.server").joinpath("static").iterdir():
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = _File(content, media_type, etag)
    return found


def _answer(http: Request, file: _File) -> Response:
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    known = http.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
