"""Messages as clients send them, in the shape that chat templates expect."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from tpuinfer.dialog.formats import Format
from tpuinfer.dialog.json_text import parsed
from tpuinfer.errors import RequestError

_BASE = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def turns(form: Format, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages for the template of a model that writes as `form` says.

    Arguments of earlier calls become objects, which templates write in the model's own way; a
    tool's result gets the name of its tool; ids become short where templates insist; reasoning goes
    by the name under which the template reads it. What is None is left out, but for the content of
    an answer that only called tools, which is empty.

    Args:
      messages: in OpenAI's form: "tool_calls" with arguments as JSON text, "tool_call_id",
        "reasoning_content".

    Raises:
      RequestError: a call is not of that form.
    """
    names: dict[str, str] = {}
    done = []
    for index, message in enumerate(messages):
        turn = {key: value for key, value in message.items() if value is not None}
        calls = turn.pop("tool_calls", None)
        if calls:
            turn["tool_calls"] = [_call(form, call, index, names) for call in calls]
            turn.setdefault("content", "")
        if isinstance(call_id := turn.get("tool_call_id"), str):
            if call_id in names:
                turn.setdefault("name", names[call_id])
            turn["tool_call_id"] = _id(form, call_id)
        if form.style == "harmony" and "reasoning_content" in turn:
            turn["thinking"] = turn.pop("reasoning_content")
        done.append(turn)
    return done


def _call(form: Format, call: Any, index: int, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(
            f'messages[{index}].tool_calls: each must be {{"id": ..., "type": "function", '
            '"function": {"name": ..., "arguments": ...}}',
            param="messages",
        )
    arguments = function.get("arguments") or "{}"
    try:
        value = parsed(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        value = None
    if not isinstance(value, Mapping):
        raise RequestError(
            f"messages[{index}].tool_calls: the arguments of {name} are {str(arguments)[:60]!r}: "
            'they must be the JSON text of an object; nearest: "{}"',
            param="messages",
        )
    made = {"type": "function", "function": {"name": name, "arguments": dict(value)}}
    if isinstance(call_id := call.get("id"), str):
        names[call_id] = name
        made["id"] = _id(form, call_id)
    return made


def _id(form: Format, call_id: str) -> str:
    """The id, or nine letters and digits made from it: the same for a call and its result."""
    if not form.short_ids or (len(call_id) == 9 and call_id.isascii() and call_id.isalnum()):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "replace")).digest()[:8], "big")
    return "".join(_BASE[number // 62**place % 62] for place in range(9))
