"""From the bytes of an HTTP request to a validated body.

No body holds up the event loop: it is parsed and validated on a thread, and what it may consist of
is bounded before, for a parser lets no other thread run. Counting what is outside of strings needs
no parser, and stops at the bound.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect

from tpuinfer.server.failures import ApiError

B = TypeVar("B", bound=BaseModel)

MAX_BODY_BYTES = 32 * 2**20
"""Bytes of a body, as they come over the wire."""

MAX_VALUES = 2**19
"""Numbers, strings, lists and objects in one body: 1024 prompts of 511 token ids, or 8 of 65536."""

MAX_PARTS = 2**17
"""Those of them that are strings, lists or objects: they cost more."""

MAX_DEPTH = 64
"""Lists and objects within each other, a JSON schema's own among them."""

BODY_SECONDS = 60.0
"""How long a client may be silent in the middle of a body."""

_INLINE_BYTES = 2**14
"""A body up to here takes less time than the way to a thread and back."""

_LARGE_BYTES = 2**20
_ONE_BY_ONE = ThreadPoolExecutor(1, "bodies")
"""Two parsers at once would keep the event loop waiting for both."""

_SCHEMAS = "#/components/schemas/"
_DEFINITIONS = "x-definitions"

_OPEN, _CLOSE = b"[{", b"]}"
_SCAN = 2**16
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def json_body(kind: type[B]) -> Any:
    """A dependency that gives the request's body as a validated `kind`.

    Reading and validating are done off the event loop. FastAPI does not see the body, so a route
    that takes one must also say so to the OpenAPI document: `openapi_extra=described(kind)`.

    Raises:
      RequestValidationError: the body is not JSON, or not a `kind`; it is shaped by `failures`.
      ApiError: it is too large, of too many values, too deep, too slow, or not sent as JSON.
    """

    async def read(http: Request) -> B:
        _require_json(http)
        return await parsed(await _read(http), kind)

    return Depends(read)


async def parsed(raw: bytes, kind: type[B]) -> B:
    """A validated `kind` from the bytes of a body, wherever they come from.

    Raises like `json_body`.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise _too_large()
    if len(raw) <= _INLINE_BYTES:
        return _parse(raw, kind.model_validate)
    lane = _ONE_BY_ONE if len(raw) > _LARGE_BYTES else None
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(lane, _parse, raw, kind.model_validate)


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """The part of a route's OpenAPI description that says what its body is."""
    _, found = models_json_schema([(kind, "validation")], ref_template=f"{_SCHEMAS}{{model}}")
    content = {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{kind.__name__}"}}}
    body = {"required": True, "content": content, _DEFINITIONS: found["$defs"]}
    return {"requestBody": body}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Move the schemas that `described` bodies bring along to where they refer to them.

    Two classes of one name must say the same, for there is one place for both.
    """
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path in document["paths"].values():
        for operation in path.values():
            for name, schema in operation.get("requestBody", {}).pop(_DEFINITIONS, {}).items():
                assert schemas.setdefault(name, schema) == schema, f"two classes are named {name}"
    return document


def check_shape(raw: bytes) -> None:
    """Refuse JSON of too many values or levels. What is no JSON is left to the parser.

    Raises:
      ApiError: 400, with the bound.
    """
    if len(raw) < MAX_PARTS and raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return  # too short for too many values, and too few lists and objects to be too deep
    values, parts, depth, at = 1, 0, 0, 0
    while True:
        quote = raw.find(b'"', at)
        stop = len(raw) if quote < 0 else quote
        for start in range(at, stop, _SCAN):
            piece = raw[start : min(start + _SCAN, stop)]
            opened = piece.count(b"[") + piece.count(b"{")
            values += piece.count(b",") + opened
            parts += opened
            if values > MAX_VALUES or parts > MAX_PARTS:
                raise _too_many()
            depth = _deepened(piece, depth) if opened else depth - _closed(piece)
        if quote < 0:
            return
        parts += 1
        at = _after_string(raw, quote + 1)


def _too_many() -> ApiError:
    message = (
        f"the body has too many values: at most {MAX_VALUES}, of which {MAX_PARTS} may be "
        "strings, lists or objects; send several requests"
    )
    return ApiError(400, message, code="too_many_values")


def _closed(piece: bytes) -> int:
    return piece.count(b"]") + piece.count(b"}")


def _deepened(piece: bytes, depth: int) -> int:
    """The depth after `piece`, a stretch without strings, having checked it all along."""
    if depth + piece.count(b"[") + piece.count(b"{") <= MAX_DEPTH:
        return depth + piece.count(b"[") + piece.count(b"{") - _closed(piece)
    for byte in piece:
        if byte in _OPEN:
            depth += 1
            if depth > MAX_DEPTH:
                message = f"the body is nested too deeply: at most {MAX_DEPTH} levels"
                raise ApiError(400, message, code="too_deep")
        elif byte in _CLOSE:
            depth -= 1
    return depth


def _after_string(raw: bytes, at: int) -> int:
    """Where the string whose first character is at `at` has ended; the end if it never does."""
    while True:
        found = _IN_STRING.match(raw, at, at + _SCAN)
        assert found is not None, "it matches nothing at all, too"
        end = found.end()
        if raw[end : end + 1] == b'"':
            return end + 1
        if end == at:
            return len(raw)
        at = end


def _require_json(http: Request) -> None:
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        message = (
            "the body must be a JSON object, sent with the header Content-Type: application/json"
        )
        raise ApiError(400, message, code="invalid_body")


async def _read(http: Request) -> bytes:
    declared = http.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    pieces: list[bytes] = []
    size = 0
    stream = http.stream()
    try:
        while True:
            async with asyncio.timeout(BODY_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                return b"".join(pieces)
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            pieces.append(piece)
    except ClientDisconnect:
        raise ApiError(400, "the client left in the middle of the body", code="gone") from None
    except TimeoutError:
        message = f"the body stopped: nothing came for {BODY_SECONDS:g} s"
        headers = {"Connection": "close"}
        raise ApiError(408, message, code="request_timeout", headers=headers) from None


def _too_large() -> ApiError:
    message = f"the body is too large: at most {MAX_BODY_BYTES} bytes"
    return ApiError(413, message, code="body_too_large")


def _parse(raw: bytes, validate: Callable[[Any], B]) -> B:
    check_shape(raw)
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        complaint = {"type": "json_invalid", "loc": ("body",), "msg": "", "input": None}
        what = str(error) if raw.strip() else "it is empty"
        raise RequestValidationError([complaint | {"ctx": {"error": what}}]) from None
    try:
        return validate(found)
    except ValidationError as error:
        shown = error.errors(include_url=False)[:1]
        raise RequestValidationError(
            [one | {"loc": ("body", *one["loc"])} for one in shown]
        ) from None
