"""From the bytes of an HTTP request to a validated body."""

import asyncio
from typing import Any, TypeVar

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

B = TypeVar("B", bound=BaseModel)


def json_body(kind: type[B]) -> Any:
    """A dependency that gives the request's body as a validated `kind`.

    Reading and validating are done off the event loop. FastAPI does not see the body, so a route
    that takes one must also say so to the OpenAPI document: `openapi_extra=described(kind)`.

    Raises:
      RequestValidationError: the body is not JSON, or not a `kind`; it is shaped by `failures`.
    """

    async def read(http: Request) -> B:
        raw = await http.body()
        try:
            return await asyncio.to_thread(kind.model_validate_json, raw)
        except ValidationError as error:
            raise RequestValidationError(
                [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
            ) from None

    return Depends(read)


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """The part of a route's OpenAPI description that says what its body is."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}
