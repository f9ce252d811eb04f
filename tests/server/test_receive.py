import json
import time

import pytest
from pydantic import create_model
from starlette.testclient import TestClient

from tpuinfer.server.failures import ApiError
from tpuinfer.server.receive import (
    MAX_BODY_BYTES,
    MAX_DEPTH,
    MAX_PARTS,
    MAX_VALUES,
    check_shape,
    complete,
    described,
)

JSON = {"content-type": "application/json"}


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


def shape(text):
    try:
        check_shape(text.encode())
    except ApiError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
        ("[" * (MAX_DEPTH + 1), "too_deep"),
        ("[1," + '{"a":' * MAX_DEPTH, "too_deep"),
        ("[" + "[]," * 5000, None),
        ('"' + "[" * 5000 + '"', None),
        ('["\\"' + "[" * 5000 + '"]', None),
        ('["\\\\"' + "[" * MAX_DEPTH, "too_deep"),
        ('"' + "," * (MAX_VALUES + 1) + '"', None),
        ("[" + "1," * (MAX_VALUES - 3) + "1]", None),
        ("[" + "1," * MAX_VALUES + "1]", "too_many_values"),
        ('["",' * MAX_PARTS, "too_deep"),
        ("[" + '"",' * (MAX_PARTS - 2) + "1]", None),
        ("[" + '"",' * (MAX_PARTS + 1) + "1]", "too_many_values"),
        ("[" + "{}," * (MAX_PARTS + 1) + "1]", "too_many_values"),
        ('"never ends', None),
        ('"ends in a slash\\', None),
        ("", None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_shape_of_json(text, found):
    assert shape(text) == found


def test_strings_are_passed_over_wherever_they_are_cut():
    for before in range(2**16 - 4, 2**16 + 2):
        text = '"' + "a" * before + '\\"\\\\' + '"' + "[" * (MAX_DEPTH + 1)
        assert shape(text) == "too_deep"
        assert shape(text.replace('\\\\"', '\\\\\\"')) is None


def test_a_body_that_is_too_large_by_its_header(client):
    headers = JSON | {"content-length": str(MAX_BODY_BYTES + 1)}
    reply = client.post("/v1/completions", content=b"{}", headers=headers)
    assert code(reply) == (413, "body_too_large")


def test_a_body_that_is_too_large_without_a_header(client):
    def chunks():
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    reply = client.post("/v1/completions", content=chunks(), headers=JSON)
    assert code(reply) == (413, "body_too_large")


def test_a_body_of_the_largest_size_is_read(client):
    body = json.dumps({"model": "other", "prompt": "a"}).encode().ljust(MAX_BODY_BYTES)
    assert code(client.post("/v1/completions", content=body, headers=JSON))[0] == 404


def test_too_many_values_are_a_400(client):
    body = b'{"model": "fake", "prompt": [' + b"1," * MAX_VALUES + b"1]}"
    reply = client.post("/v1/completions", content=body, headers=JSON)
    assert code(reply) == (400, "too_many_values")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/problem+json", 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
    ],
)
def test_what_the_content_type_may_be(client, kind, status):
    body = json.dumps({"model": "fake", "prompt": "a", "max_tokens": 1})
    reply = client.post("/v1/completions", content=body, headers={"content-type": kind})
    assert reply.status_code == status


def test_the_document_has_the_schema_of_every_body(client: TestClient):
    document = client.get("/openapi.json").json()
    text = json.dumps(document)
    assert "x-definitions" not in text
    refs = {part.partition('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert refs <= set(document["components"]["schemas"])
    assert {"ChatBody", "CompletionBody", "EmbeddingBody", "ReloadBody"} <= refs


def test_an_error_quotes_little_of_what_it_was_sent(client):
    name = "x" * 1_000_000
    for body in ({"model": name, "prompt": "a"}, {"model": "fake", "prompt": "a", name: 1}):
        reply = client.post("/v1/completions", json=body)
        assert reply.status_code in (400, 404)
        assert len(reply.content) < 5000


WORST = {
    "string": b'{"model":"fake","prompt":"' + b"a" * 30_000_000 + b'"}',
    "escapes": b'{"model":"fake","prompt":"' + b"\\n" * 15_000_000 + b'"}',
    "ids": b'{"model":"fake","prompt":[' + b"1," * 15_000_000 + b"1]}",
    "most ids": b'{"model":"fake","prompt":[' + b"1," * (MAX_VALUES - 20) + b"1]}",
    "strings": b'{"model":"fake","prompt":[' + b'"a",' * (MAX_PARTS - 20) + b"1]}",
    "floats": b'{"model":"fake","prompt":[' + b"1.5," * (MAX_VALUES - 20) + b"1]}",
    "no ids": b'{"model":"fake","prompt":[' + b"{}," * (MAX_PARTS - 20) + b"1]}",
    "endless": b'{"model":"fake","prompt":[' + b"{}," * 10_000_000 + b"1]}",
    "labels": b'{"model":"fake","prompt":"a","metadata":{'
    + b",".join(b'"%d":1' % i for i in range(MAX_PARTS - 20))
    + b"}}",
    "objects": b'{"model":"fake","metadata":[' + b'{"a":1},' * (MAX_PARTS // 2 - 20) + b"1]}",
}


@pytest.mark.parametrize("body", WORST.values(), ids=WORST)
def test_health_answers_while_a_large_body_is_parsed(uvicorn_server, body):
    """The slowest /health until the body is answered; other work on the machine may spoil a try."""
    port = uvicorn_server()
    tries = []
    while not tries or (min(tries) > 0.1 and len(tries) < 5):
        tries.append(slowest_health(uvicorn_server, port, body))
    assert set(uvicorn_server.status) == {400}
    assert min(tries) < 0.1, tries


def slowest_health(uvicorn_server, port, body):
    """Seconds from one answer to the next: this thread stands still with the server's."""
    posted = uvicorn_server.post(port, "/v1/completions", body)
    slowest, before = 0.0, time.perf_counter()
    while posted.is_alive():
        assert uvicorn_server.get(port, "/health").startswith(b"HTTP/1.1 200")
        now = time.perf_counter()
        slowest, before = max(slowest, now - before), now
        time.sleep(0.002)
    return slowest


def test_two_bodies_of_one_name_do_not_hide_each_other():
    def document(*kinds):
        return {"paths": {f"/{i}": {"post": described(kind)} for i, kind in enumerate(kinds)}}

    one, other = create_model("Body", a=int), create_model("Body", b=int)
    assert complete(document(one, one))["components"]["schemas"].keys() == {"Body"}
    with pytest.raises(AssertionError, match="two classes are named Body"):
        complete(document(one, other))
