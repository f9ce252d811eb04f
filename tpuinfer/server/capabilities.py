"""`/v1/capabilities`: what each endpoint takes, from the tables that bodies are validated by."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from tpuinfer.server.bridge import Bridge
from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.fields import StrictBody
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.replies import ERRORS, Capabilities, Parameter
from tpuinfer.server.token_bodies import DetokenizeBody, TokenizeBody

BODIES: Mapping[str, type[StrictBody]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


def capabilities_router(
    bridge: Bridge, info: ServerInfo, more: Mapping[str, type[StrictBody]] | None = None
) -> APIRouter:
    """The route; `more`: path -> body of the endpoints of other rooms."""
    router = APIRouter(prefix="/v1", responses=ERRORS)
    bodies = {**BODIES, **(more or {})}
    endpoints = {path: parameters(body) for path, body in bodies.items()}

    @router.get("/capabilities", response_model_exclude_unset=True)
    async def capabilities() -> Capabilities:
        """Each parameter of each endpoint: whether it is supported, its type and its range."""
        return Capabilities(
            object="capabilities",
            model=info.model,
            max_model_len=bridge.context if bridge.failure is None else None,
            endpoints=endpoints,
        )

    return router


def parameters(body: type[StrictBody]) -> dict[str, Parameter]:
    """Name -> what may be sent for it; what is not supported has the values that ask for nothing.

    Null, which means unset, is left out, except where it is the only value.
    """
    schema = body.model_json_schema()
    definitions = schema.get("$defs", {})
    found = {}
    for name, shape in schema["properties"].items():
        if name in body.neutral:
            accepted = [*body.neutral[name], None]
            found[name] = Parameter(supported=False, accepted=accepted)
            continue
        types = [one for one in shape.get("anyOf", [shape]) if one != {"type": "null"}]
        about = {key: shape[key] for key in ("default",) if shape.get(key) is not None}
        if "description" in shape:
            about["note"] = shape["description"]
        for one in types:
            about |= {word: one[key] for key, word in _BOUNDS.items() if key in one}
        kinds = sorted({kind for one in types for kind in _kinds(one, definitions)})
        required = name in schema.get("required", ())
        found[name] = Parameter(supported=True, required=required, type=kinds, **about)
    return found


_BOUNDS = {
    "minimum": "minimum",
    "exclusiveMinimum": "above",
    "maximum": "maximum",
    "enum": "values",
    "minItems": "min_items",
    "maxItems": "max_items",
    "minLength": "min_length",
    "maxLength": "max_length",
    "maxProperties": "max_entries",
}
"""JSON schema's word for a bound -> ours."""


def _kinds(shape: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    if "$ref" in shape:
        return _kinds(definitions[shape["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in shape:
        return [kind for one in shape["anyOf"] for kind in _kinds(one, definitions)]
    return [str(shape["type"])]
