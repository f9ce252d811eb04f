"""Lines to tasks: OpenAI's requests and plain rows."""

import orjson
import pytest

from tpuinfer.errors import ConfigError
from tpuinfer.offline import requests
from tpuinfer.offline.form import Form
from tpuinfer.offline.requests import MAX_ID_CHARACTERS, URLS, Requests, Rows
from tpuinfer.offline.task import LineError, Task

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}


def asked(fields, **defaults):
    return Requests(defaults).task(3, "in.jsonl:4", fields)


def row_task(form, fields, position=3):
    return Rows(form).task(position, "in.jsonl:4", fields)


@pytest.mark.parametrize("url", URLS.values())
def test_a_request_is_a_task(url):
    assert asked(LINE | {"url": url}) == Task(3, "in.jsonl:4", "a", url, b'{"prompt":"x"}')


@pytest.mark.parametrize(
    ("change", "param", "code", "words"),
    [
        ({"custom_id": None}, "custom_id", "missing_required_parameter", "custom_id is missing"),
        ({"custom_id": 5}, "custom_id", "invalid_type", "custom_id is 5: it must be text"),
        ({"custom_id": ""}, "custom_id", "invalid_value", "1 to 512 characters; it has 0"),
        ({"custom_id": "x" * 513}, "custom_id", "invalid_value", "it has 513"),
        ({"method": "GET"}, "method", "invalid_value", "method is GET: it must be 'POST'"),
        ({"method": "post"}, "method", "invalid_value", "must be 'POST'"),
        ({"method": None}, "method", "missing_required_parameter", "method is missing"),
        ({"url": "/v1/chat"}, "url", "invalid_url", "nearest: /v1/chat/completions"),
        ({"url": "https://a/v1/embeddings"}, "url", "invalid_url", "nearest: /v1/embeddings"),
        ({"url": ["/v1/completions"]}, "url", "invalid_url", "must be one of"),
        ({"url": "x" * 999}, "url", "invalid_url", "xxx..."),
        ({"body": "x"}, "body", "invalid_type", "body is x: it must be an object"),
        ({"body": None}, "body", "missing_required_parameter", "body is missing"),
        ({"Body": {}}, "Body", "unknown_parameter", "did you mean 'body'?"),
        ({"model": None}, "model", "unknown_parameter", "stand in its body"),
    ],
)
def test_each_fault_is_named(change, param, code, words):
    task = asked(LINE | change)
    assert (task.error.param, task.error.code) == (param, code)
    assert words in str(task.error)
    assert (task.url, task.body, task.row) == ("", b"", None)
    assert task.custom_id == (None if param == "custom_id" else "a")


def test_an_id_of_the_longest_length_is_one():
    assert asked(LINE | {"custom_id": "é" * MAX_ID_CHARACTERS}).error is None


def test_a_line_that_is_no_request_at_all_is_told_of_plain_rows():
    assert "for plain rows give --prompt-field" in str(asked({"text": "x"}).error)
    assert "--prompt-field" not in str(asked({"custom_id": "a"}).error)


def test_a_line_that_could_not_be_read_stays_an_error():
    error = LineError("the line is not JSON", code="invalid_json")
    assert asked(error) == Task(3, "in.jsonl:4", None, error=error)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, {"max_tokens": 5, "guided_regex": "a", "seed": 1}),
        ({"seed": 2}, {"max_tokens": 5, "guided_regex": "a", "seed": 2}),
        ({"seed": None}, {"max_tokens": 5, "guided_regex": "a", "seed": None}),
        (
            {"max_completion_tokens": 7, "guided_json": {}},
            {"max_completion_tokens": 7, "guided_json": {}, "seed": 1},
        ),
        ({"response_format": {}}, {"max_tokens": 5, "response_format": {}, "seed": 1}),
    ],
)
def test_defaults_hold_where_the_line_does_not_say(body, wanted):
    task = asked(LINE | {"body": body}, max_tokens=5, guided_regex="a", seed=1)
    assert orjson.loads(task.body) == wanted


def test_a_request_for_embeddings_takes_no_default_but_the_model():
    line = LINE | {"url": URLS["embedding"], "body": {"input": "x"}}
    assert orjson.loads(asked(line, model="m", temperature=1).body) == {"model": "m", "input": "x"}
    named = line | {"body": {"input": "x", "model": "n"}}
    assert orjson.loads(asked(named, model="m").body) == {"model": "n", "input": "x"}


def test_a_body_that_grew_too_large_is_an_error(monkeypatch):
    monkeypatch.setattr(requests, "MAX_LINE_BYTES", 16)
    assert asked(LINE).error is None
    task = asked(LINE, seed=1)
    assert (task.error.code, task.custom_id, task.body) == ("body_too_large", "a", b"")


@pytest.mark.parametrize(
    ("form", "url", "body"),
    [
        (Form("text"), "/v1/completions", {"prompt": "a cat"}),
        (Form(template="{n}: {text}"), "/v1/completions", {"prompt": "3: a cat"}),
        (Form("text", task="embedding"), "/v1/embeddings", {"input": "a cat"}),
        (
            Form("text", task="chat"),
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a cat"}]},
        ),
        (
            Form("text", task="chat", system="Be {brief}.", defaults={"max_tokens": 4}),
            "/v1/chat/completions",
            {
                "max_tokens": 4,
                "messages": [
                    {"role": "system", "content": "Be {brief}."},
                    {"role": "user", "content": "a cat"},
                ],
            },
        ),
    ],
)
def test_a_row_is_asked_as_its_form_says(form, url, body):
    row = {"text": "a cat", "n": 3, "body": None}
    task = row_task(form, row)
    assert (task.url, orjson.loads(task.body), task.error) == (url, body, None)
    assert (task.row, task.custom_id, task.position) == (row, "row-4", 3)


def test_what_looks_like_a_request_is_a_row_where_rows_are_read():
    task = row_task(Form("custom_id"), LINE)
    assert (task.custom_id, task.row, task.body) == ("row-4", LINE, b'{"prompt":"a"}')


@pytest.mark.parametrize(
    ("value", "custom_id", "code"),
    [
        ("k1", "k1", None),
        (17, "17", None),
        (None, None, "missing_required_parameter"),
        (True, None, "invalid_type"),
        (1.5, None, "invalid_type"),
        (["a"], None, "invalid_type"),
        ("", None, "invalid_value"),
        ("x" * 513, None, "invalid_value"),
    ],
)
def test_a_row_has_its_own_id(value, custom_id, code):
    task = row_task(Form("text", id_field="key"), {"text": "a", "key": value})
    assert task.custom_id == custom_id
    assert (task.error and (task.error.code, task.error.param)) == (code and (code, "key"))
    assert task.row is not None


def test_a_row_without_its_id_field_says_so():
    task = row_task(Form("text", id_field="key"), {"text": "a"})
    assert "field 'key' is missing: it is the row's custom_id" in str(task.error)


def test_a_row_at_fault_keeps_its_id_and_fields():
    task = row_task(Form("text", id_field="key"), {"txt": "a", "key": "k1"})
    assert (task.custom_id, task.row, task.url, task.body) == (
        "k1",
        {"txt": "a", "key": "k1"},
        "",
        b"",
    )
    assert "did you mean 'txt'" in str(task.error)


def test_a_row_that_could_not_be_read_has_the_id_of_its_place():
    error = LineError("no", code="invalid_json")
    assert row_task(Form("text"), error) == Task(3, "in.jsonl:4", "row-4", error=error)
    by_field = row_task(Form("text", id_field="key"), error)
    assert (by_field.custom_id, by_field.row, by_field.error) == (None, None, error)


def test_fields_that_no_row_will_have_are_refused_at_once():
    for form in (Form("txt"), Form("text", id_field="txt"), Form(template="{txt}")):
        with pytest.raises(ConfigError, match=r"in.csv has no field 'txt'; did you mean 'text'\?"):
            Rows(form).check(["id", "text"], "in.csv")
    Rows(Form("text", id_field="id")).check(["id", "text"], "in.csv")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"prompt_field": "a", "template": "{a}"}, "give one of them"),
        ({"prompt_field": "a", "task": "chats"}, "nearest: chat"),
        ({"prompt_field": "a", "system": "x"}, "it goes with task chat"),
        ({"id_field": "x"}, "an id field is given: it goes with plain rows"),
        ({"system": "x", "task": "chat"}, "a system message is given: it goes with plain rows"),
        ({"template": "{a.b}"}, "no plain {field}"),
    ],
)
def test_a_form_of_fields_that_do_not_go_together_is_refused(form, words):
    with pytest.raises(ConfigError) as error:
        Form(**form)
    assert words in str(error.value)
