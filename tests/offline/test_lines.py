"""Lines of the journals, by hand."""

import json

import orjson
import pytest

from tpuinfer.offline.lines import written
from tpuinfer.offline.task import Outcome, Stamp, Task

STAMP = Stamp("ab" * 16, 7, 1000)
TASK = Task(0, "in.jsonl:3", "a", "/v1/completions", b"{}")
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def read(task, outcome):
    line = written(task, STAMP, outcome)
    assert b"\n" not in line
    return orjson.loads(line)


def test_an_answer_is_in_openais_form_with_the_servers_bytes():
    body = b'{"id":"x",  "n":1.50}'
    line = written(TASK, STAMP, Outcome(200, body))
    assert body in line
    assert orjson.loads(line) == {
        "id": "batch_req_" + "ab" * 16,
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "ab" * 16, "body": {"id": "x", "n": 1.5}},
        "error": None,
    }


def test_a_body_on_several_lines_is_put_on_one():
    assert read(TASK, Outcome(200, b'{"a":\r\n"b\\n"}'))["response"]["body"] == {"a": "b\n"}


def test_an_error_says_where_its_line_stands():
    task = Task(0, "in.jsonl:3", None)
    line = read(task, Outcome(400, b'{"error":{"message":"no"}}'))
    assert (line["custom_id"], line["line"]) == (None, "in.jsonl:3")
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"] == {"error": {"message": "no"}}


def test_a_line_that_was_never_asked_has_an_error_and_no_response():
    body = json.dumps({"error": {"message": "late", "code": "batch_expired", "param": None}})
    line = read(TASK, Outcome(0, body.encode()))
    assert line["response"] is None
    assert line["error"] == {"code": "batch_expired", "message": "late"}


def row(answer):
    task = Task(0, "in.csv:2", "row-1", "/v1/completions", b"{}", row={"text": "x"})
    return read(task, Outcome(200, json.dumps(answer).encode()))


def test_a_row_gets_its_fields_back_beside_the_output():
    choice = {"index": 0, "text": "y", "finish_reason": "stop"}
    assert row({"choices": [choice], "usage": USAGE}) == {
        "custom_id": "row-1",
        "row": {"text": "x"},
        "output": "y",
        "finish_reason": "stop",
        "usage": USAGE,
    }


def test_several_outputs_are_a_list_by_index():
    choices = [{"index": i, "text": f"t{i}", "finish_reason": "stop"} for i in (1, 0)]
    line = row({"choices": choices, "usage": USAGE})
    assert (line["outputs"], line["finish_reasons"]) == (["t0", "t1"], ["stop", "stop"])


CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "output"),
    [
        ({"role": "assistant", "content": "hi", "refusal": None}, "hi"),
        (
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "assistant", "content": None, "tool_calls": CALLS},
        ),
    ],
)
def test_a_chat_gives_its_text_or_the_calls_it_makes(message, output):
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    assert row({"choices": [choice], "usage": USAGE})["output"] == output


def test_an_embedding_gives_its_vector():
    line = row({"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": USAGE})
    assert line["output"] == [0.5, 1.0]
    assert "finish_reason" not in line


def test_a_row_that_failed_keeps_its_fields():
    task = Task(0, "in.csv:2", "row-1", row={"text": "x"})
    line = read(task, Outcome(400, b'{"error":{"message":"no"}}'))
    assert (line["row"], line["line"]) == ({"text": "x"}, "in.csv:2")
