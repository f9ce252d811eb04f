"""One choice's text as the parts of a message: content, reasoning, tool calls."""

import hashlib
import itertools
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from tpuinfer.dialog.pieces import CallArguments, CallStart, Content, Piece, Reasoning

_LETTERS = string.ascii_letters + string.digits

Part = dict[str, Any]
"""A piece of a message as OpenAI's streams carry it in `delta`."""


class Reader(Protocol):
    """Text in, pieces out; see `tpuinfer.dialog.reader`."""

    def push(self, text: str, /) -> Sequence[Piece]: ...
    def finish(self) -> Sequence[Piece]: ...


class Spoken:
    """Follows one choice.

    Attributes:
      called: tools have been called.
    """

    def __init__(self, reader: Reader, *, parallel: bool = True) -> None:
        """`parallel`: calls after the first one are shown too, not dropped."""
        self.called = False
        self._reader = reader
        self._parallel = parallel

    def push(self, text: str) -> list[Part]:
        return self._parts(self._reader.push(text))

    def finish(self) -> list[Part]:
        return self._parts(self._reader.finish())

    def _parts(self, pieces: Iterable[Piece]) -> list[Part]:
        return [part for piece in pieces if (part := self._part(piece)) is not None]

    def _part(self, piece: Piece) -> Part | None:
        match piece:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallStart(index, call_id, name) if self._parallel or index == 0:
                self.called = True
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments(index, text) if self._parallel or index == 0:
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None


def call_ids(choice: str, *, short: bool) -> Callable[[], str]:
    """Makes the ids of one choice's calls: the first, the second and so on of that name.

    `short`: of nine letters and digits, as some models' templates want them.
    """
    places = itertools.count()

    def next_id() -> str:
        digest = hashlib.sha256(f"{choice}\0{next(places)}".encode()).digest()
        if short:
            return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])
        return f"call_{digest[:12].hex()}"

    return next_id


def message(parts: Iterable[Part]) -> dict[str, Any]:
    """The whole message of a choice from its parts; content is null if there are only calls."""
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        for name, found in texts.items():
            found.append(part.get(name, ""))
        for piece in part.get("tool_calls", ()):
            function = piece["function"]
            if "id" in piece:
                call = {"id": piece["id"], "type": "function", "function": dict(function)}
                calls[piece["index"]] = call
            else:
                calls[piece["index"]]["function"]["arguments"] += function["arguments"]
    content = "".join(texts["content"])
    whole: dict[str, Any] = {
        "role": "assistant",
        "content": content or (None if calls else ""),
        "refusal": None,
    }
    if reasoning := "".join(texts["reasoning_content"]):
        whole["reasoning_content"] = reasoning
    if calls:
        whole["tool_calls"] = list(calls.values())
    return whole
