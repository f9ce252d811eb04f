"""What a list is asked for: `after`, `limit` and so on, and nothing else."""

import difflib
from typing import Any, Protocol, TypeVar

from fastapi import Depends, Request

from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import shown


class Named(Protocol):
    """What lists are of."""

    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=Named)


def only(*names: str) -> Any:
    """A dependency that refuses every query parameter but these, and those that come twice."""

    def check(http: Request) -> None:
        for name in http.query_params:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "leave it out"
                message = f"unknown parameter {shown(name)}: {hint}"
                raise ApiError(400, message, param=name, code="unknown_parameter")
            if len(http.query_params.getlist(name)) > 1:
                message = f"{name} is there twice: send it once"
                raise ApiError(400, message, param=name, code="invalid_value")

    return Depends(check)


def page_of(items: list[N], limit: int) -> dict[str, Any]:
    """The fields of a list of the first `limit` items, of which there may be one more."""
    kept = items[:limit]
    return {
        "data": kept,
        "first_id": kept[0].id if kept else None,
        "last_id": kept[-1].id if kept else None,
        "has_more": len(items) > limit,
    }


def no_such(kind: str, name: str, param: str) -> ApiError:
    """404 for what is not there, or is another key's."""
    message = f"{kind} {shown(name)} does not exist"
    return ApiError(404, message, param=param, code=f"{kind}_not_found")
