"""One structured line for each HTTP request. Never what was asked or answered."""

import logging
from collections.abc import Callable
from typing import Any

import orjson

from tpuinfer.server.trail import Trail
from tpuinfer.server.writer import Writer

_log = logging.getLogger("tpuinfer.request")

FORMATS = ("text", "json", "none")

_QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Routes that are asked every few seconds: their requests are logged if they fail."""


def request_log(style: str) -> Callable[[Trail], None] | None:
    """What logs an ended request: as key=value ("text"), as JSON, or nothing ("none")."""
    assert style in FORMATS, style
    if style == "none":
        return None
    shape = as_json if style == "json" else as_text
    writer = Writer(_log.info, "request log")

    def note(trail: Trail) -> None:
        if trail.route not in _QUIET or trail.status >= 400:
            said = fields(trail)  # not the trail: it holds the prompts
            writer.put(lambda: shape(said))

    return note


def fields(trail: Trail) -> dict[str, Any]:
    """What is said of a request; what is not known of it is left out."""
    known = {
        "request_id": trail.request_id,
        "method": trail.method,
        "route": trail.route or "none",
        "status": trail.status,
        "seconds": round(trail.seconds, 4),
        "model": trail.model,
        "prompt_tokens": trail.prompt_tokens or None,
        "completion_tokens": trail.completion_tokens or None,
        "ttft": None if trail.ttft is None else round(trail.ttft, 4),
        "finish": ",".join(dict.fromkeys(trail.finish_reasons)) or None,
        "error": trail.error,
        "key": trail.key,
    }
    return {name: value for name, value in known.items() if value is not None}


def as_json(said: dict[str, Any]) -> str:
    """One line of JSON."""
    return orjson.dumps(said).decode()


def as_text(said: dict[str, Any]) -> str:
    """key=value, quoted as JSON where a value has spaces, quotes or control characters."""
    return " ".join(f"{name}={_plain(value)}" for name, value in said.items())


def _plain(value: Any) -> str:
    text = str(value)
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "='):
        return text
    return orjson.dumps(text).decode()
