import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.errors import CheckpointError, RequestError, TokenizerError
from tpuinfer.server.app import create_app
from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.failures import ApiError, EngineDeadError, NotReadyError, as_api_error
from tpuinfer.server.info import ServerInfo

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (RequestError("m", param="p"), 400, "invalid_value", {}),
        (TokenizerError("m"), 400, "invalid_prompt", {}),
        (QueueFullError("m"), 503, "queue_full", {"Retry-After": "1"}),
        (NotReadyError("m"), 503, "not_ready", {"Retry-After": "5"}),
        (EngineDeadError("m"), 503, "engine_dead", {"Retry-After": "5"}),
        (ApiError(418, "m", code="c"), 418, "c", {}),
    ],
)
def test_every_failure_has_a_status(error, status, code, headers):
    api = as_api_error(error)
    assert (api.status, api.code, api.headers, str(api)) == (status, code, headers, "m")


@pytest.mark.parametrize("error", [ValueError("secret"), CheckpointError("secret")])
def test_what_nobody_foresaw_shows_no_detail(error):
    api = as_api_error(error)
    assert (api.status, str(api)) == (500, "internal error")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"null", b"\xff", b'{"model": "\xff"}', b"[" * 100_000],
    ids=lambda body: repr(body[:12]) if isinstance(body, bytes) else None,
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_json_object(client, path, body):
    reply = client.post(path, content=body, headers=JSON)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_a_missing_content_type_is_explained(client):
    reply = client.post("/v1/completions", content=b'{"model": "fake", "prompt": "a"}')
    assert reply.status_code == 400
    assert "Content-Type: application/json" in reply.json()["error"]["message"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields, *ChatBody.neutral, "other"})


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=st.sampled_from(["completions", "chat/completions"]), data=st.data())
def test_no_body_at_all_is_a_fault_of_the_server(client, path, data):
    valid = {"model": MODEL, "prompt": "a"}
    if path == "chat/completions":
        valid = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=2))
    reply = client.post(f"/v1/{path}", content=json.dumps(valid | changes), headers=JSON)
    assert reply.status_code in (200, 400, 404)
    if reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("depth", [100, 900, 980, 5000])
def test_a_deep_body_is_refused(client, depth):
    body = b'{"model": "fake", "prompt": ' + b"[" * depth + b"]" * depth + b"}"
    assert client.post("/v1/completions", content=body, headers=JSON).status_code == 400
    body = b'{"model": "fake", "prompt": "a", "metadata": {"x": ' + b"[" * depth + b"]" * depth
    reply = client.post("/v1/completions", content=body + b"}}", headers=JSON)
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
    ],
)
def test_routes_that_are_not_there(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["message"].startswith(f"{method} {path}: ")
    assert ("allow" in reply.headers) == (status == 405)


def test_another_model_is_not_found(complete, chat):
    for reply in (complete(model="gpt-4"), chat(model="gpt-4")):
        assert reply.status_code == 404
        assert reply.json()["error"] == {
            "message": "model 'gpt-4' does not exist: this server serves 'fake', 'alias'",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


def test_a_fault_of_our_own_is_a_shaped_500(bridge, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(bridge.tokenizer, "encode", broken)
    with TestClient(create_app(bridge, ServerInfo(MODEL)), raise_server_exceptions=False) as client:
        reply = client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
    assert reply.status_code == 500
    assert reply.json()["error"]["message"] == "internal error"


def test_a_tokenizer_that_refuses_is_a_400(bridge, chat, monkeypatch):
    def refuse(messages: object) -> None:
        raise TokenizerError("roles must alternate")

    monkeypatch.setattr(bridge.tokenizer, "encode_chat", refuse)
    reply = chat()
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "roles must alternate"
