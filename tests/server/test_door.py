"""Request ids, the line about each request, and the audit log."""

import json
import stat

import pytest
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.errors import ConfigError
from tpuinfer.server.access import Keys
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.audit import Audit
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.request_log import as_json, as_text, fields
from tpuinfer.server.trail import Trail, key_name
from tpuinfer.server.writer import Writer

ASK = {"model": MODEL, "prompt": "abc", "max_tokens": 3, "temperature": 0}


@pytest.fixture
def trails():
    return []


@pytest.fixture
def noted(bridge, trails):
    options = ServerOptions(notes=[trails.append])
    with TestClient(create_app(bridge, ServerInfo(MODEL), options)) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("GET", "/health", None),
        ("GET", "/nope", None),
        ("PUT", "/v1/models", None),
        ("POST", "/v1/completions", json.dumps(ASK)),
        ("POST", "/v1/completions", json.dumps(ASK | {"stream": True})),
        ("POST", "/v1/completions", "{"),
    ],
)
def test_every_answer_has_the_request_s_id(noted, trails, method, path, content):
    headers = {"X-Request-Id": "mine-1", "Content-Type": "application/json"}
    reply = noted.request(method, path, content=content, headers=headers)
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert trails[-1].request_id == "mine-1"


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, 'a"b', "\u00e9"])
def test_an_id_that_is_not_sane_is_replaced(noted, name):
    reply = noted.get("/health", headers={"X-Request-Id": name.encode()})
    assert reply.headers["x-request-id"].isalnum()
    assert len(reply.headers["x-request-id"]) == 32


def test_what_a_trail_knows_of_an_answer(noted, trails):
    for more in ({}, {"stream": True}, {"n": 2, "temperature": 1}):
        noted.post("/v1/completions", json=ASK | more)
        trail = trails[-1]
        answers = more.get("n", 1)
        assert (trail.route, trail.status, trail.model) == ("/v1/completions", 200, MODEL)
        assert (trail.prompt_tokens, trail.completion_tokens) == (3, 3 * answers)
        assert trail.finish_reasons == ["length"] * answers
        assert 0 < trail.ttft <= trail.seconds < 5


def test_a_fault_of_our_own_shows_no_path_and_has_an_id(noted, trails, bridge, monkeypatch):
    def broken(*_, **__):
        raise FileNotFoundError(2, "No such file", "/secret/place/model.bin")

    monkeypatch.setattr(bridge.tokenizer, "encode", broken)
    reply = noted.post("/v1/completions", json=ASK)
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] == trails[-1].request_id
    assert (trails[-1].status, trails[-1].error) == (500, "internal_error")


def test_the_line_about_a_request():
    trail = Trail("id", "POST", "/x", route="/x", status=200, model='a "b"', start=1.0, end=1.5)
    said = fields(trail)
    assert json.loads(as_json(said)) == said
    assert as_text(said) == (
        'request_id=id method=POST route=/x status=200 seconds=0.5 model="a \\"b\\""'
    )


@pytest.mark.parametrize("prompts", [False, True])
def test_the_audit_log_says_who_asked_for_how_much(bridge, tmp_path, prompts):
    path = tmp_path / "audit.jsonl"
    decode = (lambda ids: bridge.tokenizer.decode(ids)) if prompts else None
    audit = Audit(path, decode)
    options = ServerOptions(keys=Keys(api=["some-key-1"]), notes=[audit], closes=[audit.close])
    headers = {"Authorization": "Bearer some-key-1"}
    with TestClient(create_app(bridge, ServerInfo(MODEL), options)) as client:
        client.post("/v1/completions", json=ASK, headers=headers)
        client.get("/health")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (line,) = map(json.loads, path.read_text("utf-8").splitlines())
    assert (line["key"], line["model"], line["version"]) == (key_name("some-key-1"), MODEL, 0)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 3)
    assert line.get("prompts") == (["abc"] if prompts else None)
    assert "some-key" not in path.read_text("utf-8")


def test_an_audit_log_that_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        Audit(tmp_path / "none" / "audit.jsonl")


def test_a_writer_that_is_stuck_holds_up_nobody(monkeypatch):
    import threading

    monkeypatch.setattr("tpuinfer.server.writer.MOST_WAITING", 3)
    gate, written = threading.Event(), []

    def write(line):
        gate.wait(5)
        written.append(line)

    writer = Writer(write, "test")
    for number in range(10):
        writer.put(lambda number=number: str(number))
    assert writer.dropped >= 6
    gate.set()
    writer.close()
    assert written[:3] == ["0", "1", "2"]
