"""The lines of the journals: each a function of a line of input, its outcome and its stamp alone.

No clock and no chance enters them, so a resumed batch writes what an unbroken one would have.
"""

from typing import Any

import orjson

from tpuinfer.offline.task import Outcome, Stamp, Task

Json = dict[str, Any]


def written(task: Task, stamp: Stamp, outcome: Outcome) -> bytes:
    """What is recorded of a line, without a newline at its end.

    A request that was written as one gets OpenAI's batch form; a row of plain input that was
    answered gets its own fields back beside what the model made of them.
    """
    if task.row is not None and outcome.ok:
        return orjson.dumps(_row(task, task.row, orjson.loads(outcome.body)))
    line = _response(task, stamp, outcome)
    if not outcome.ok:
        line["line"] = task.where
        if task.row is not None:
            line["row"] = task.row
    return orjson.dumps(line)


def _response(task: Task, stamp: Stamp, outcome: Outcome) -> Json:
    """OpenAI's form; with status 0, of a line that was never asked."""
    line: Json = {"id": f"batch_req_{stamp.name}", "custom_id": task.custom_id}
    if outcome.status == 0:
        error = orjson.loads(outcome.body)["error"]
        why = {"code": error.get("code"), "message": error["message"]}
        return line | {"response": None, "error": why}
    response = {
        "status_code": outcome.status,
        "request_id": stamp.name,
        "body": orjson.Fragment(_one_line(outcome.body)),
    }
    return line | {"response": response, "error": None}


def _one_line(body: bytes) -> bytes:
    """JSON without raw newlines, which can only stand between its parts."""
    return orjson.dumps(orjson.loads(body)) if b"\n" in body or b"\r" in body else body


def _row(task: Task, row: Any, answer: Json) -> Json:
    """A row with its output: text, or a vector; a list of them where several were asked for."""
    line: Json = {"custom_id": task.custom_id, "row": row}
    if "choices" not in answer:
        vectors = [item["embedding"] for item in answer["data"]]
        return line | _one_or_all("output", vectors) | {"usage": answer["usage"]}
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    texts = [_said(choice) for choice in choices]
    reasons = [choice["finish_reason"] for choice in choices]
    return (
        line
        | _one_or_all("output", texts)
        | _one_or_all("finish_reason", reasons)
        | {"usage": answer["usage"]}
    )


def _said(choice: Json) -> Any:
    """The text of one choice; of one that calls tools, the whole message."""
    if "message" not in choice:
        return choice["text"]
    message = choice["message"]
    return message if message.get("tool_calls") else message["content"]


def _one_or_all(name: str, values: list[Any]) -> Json:
    return {name: values[0]} if len(values) == 1 else {f"{name}s": values}
