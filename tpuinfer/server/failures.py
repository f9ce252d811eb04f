"""Every failure in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.errors import RequestError, TokenizerError, TpuinferError
from tpuinfer.server.fields import shown, unicode_only
from tpuinfer.server.trail import current

_MOST_CHARACTERS = 2000
"""Of an error's message: a client may have put anything into a name that it quotes."""

QUEUE_RETRY_SECONDS = 1
LOADING_RETRY_SECONDS = 5

_CODES = {404: "not_found", 405: "method_not_allowed"}


class NotReadyError(TpuinferError):
    """The engine cannot take requests: it is loading or stopping."""


class EngineDeadError(TpuinferError):
    """The engine raised; nothing it held can be finished."""


class ListenError(TpuinferError):
    """An address the server cannot listen on."""

    exit_code = 7


class ApiError(TpuinferError):
    """A failure with its HTTP status and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON a client sees."""
        fields = {
            "message": unicode_only(str(self)[:_MOST_CHARACTERS]),
            "type": self.kind,
            "param": None if self.param is None else unicode_only(self.param[:_MOST_CHARACTERS]),
            "code": self.code,
        }
        return orjson.dumps({"error": fields})


def as_api_error(error: Exception) -> ApiError:
    """The HTTP face of any exception; one that nobody foresaw shows no detail.

    The trail of the request that is being served remembers its code.
    """
    api = _face(error)
    if (trail := current()) is not None:
        trail.error = api.code or "http_error"
    return api


def _face(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _from_validation(error.errors())
        case QueueFullError():
            return _unavailable(str(error), "queue_full", QUEUE_RETRY_SECONDS)
        case NotReadyError():
            return _unavailable(str(error), "not_ready", LOADING_RETRY_SECONDS)
        case RequestError():
            return ApiError(400, str(error), param=error.param, code="invalid_value")
        case TokenizerError():
            return ApiError(400, str(error), code="invalid_prompt")
        case EngineDeadError():
            return _unavailable(str(error), "engine_dead", LOADING_RETRY_SECONDS)
        case _:
            return ApiError(500, "internal error", kind="server_error", code="internal_error")


def error_response(error: Exception) -> Response:
    """An exception as a JSON response."""
    api = as_api_error(error)
    return Response(api.body(), api.status, api.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Shape every error `app` can foresee, FastAPI's and Starlette's own among them."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        code = _CODES.get(error.status_code)
        return error_response(
            ApiError(error.status_code, message, code=code, headers=error.headers)
        )

    async def known(request: Request, error: Exception) -> Response:
        return error_response(error)

    app.add_exception_handler(RequestValidationError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(TpuinferError, known)


def _unavailable(message: str, code: str, retry_seconds: int) -> ApiError:
    headers = {"Retry-After": str(retry_seconds)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


def _from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's complaints, in one line."""
    first = errors[0]
    context = first.get("ctx") or {}
    where = _dotted(first["loc"][1:])
    match first["type"]:
        case "refused":  # our own words, see protocol.py
            param = ".".join(filter(None, (where, context["param"])))
            return ApiError(400, context["message"], param=param, code=context["code"])
        case "json_invalid":
            message = f"the body is not JSON: {context.get('error', first['msg'])}"
            return ApiError(400, message, code="invalid_json")
        case "missing" if where:
            message = f"{where} is missing: it is required"
            return ApiError(400, message, param=where, code="missing_required_parameter")
        case _ if not where:
            message = (
                "the body must be a JSON object, sent with the header "
                "Content-Type: application/json"
            )
            return ApiError(400, message, code="invalid_body")
        case _:
            rule = first["msg"][:1].lower() + first["msg"][1:]
            message = f"{where} is {shown(first['input'])}: {rule}"
            code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
            return ApiError(400, message, param=where, code=code)


def _dotted(location: Sequence[int | str]) -> str:
    """("messages", 0, "content") -> "messages[0].content"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
