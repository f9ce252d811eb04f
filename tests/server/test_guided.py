"""Structured output and tools through HTTP, on the fake engine with real grammars."""

import asyncio
import json
import time
from types import SimpleNamespace

import jsonschema
import pytest
from served import MODEL, fake_engine
from starlette.testclient import TestClient
from test_stream import events

from tpuinfer.engine.engine import Engine
from tpuinfer.errors import RequestError
from tpuinfer.grammar.guide import Guide
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.failures import ApiError
from tpuinfer.server.guides import Guides
from tpuinfer.server.info import ServerInfo
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "dry": {"type": "boolean"}},
    "required": ["unit", "dry"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}


class HermesTokenizer(FakeTokenizer):
    """The fake with a template that knows tools, in Hermes' way."""

    template_source = "{{ tools }}<tool_call>"

    def apply_chat_template(self, messages, *, tools=None, **extra):
        return super().apply_chat_template(messages, **extra)


@pytest.fixture
def ask():
    bridge = Bridge(MODEL)
    engine = Engine(FakeRunner(slots=4, capacity=512), HermesTokenizer())
    bridge.attach(engine, engine._tokenizer)
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:

        def post(**fields):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]} | fields
            return client.post("/v1/chat/completions", json={"temperature": 0} | body)

        yield post
    bridge.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            }
        },
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
    ids=["response_format", "guided_json", "text", "structured_outputs"],
)
def test_a_schema_is_followed(ask, fields):
    for choice in ask(n=2, **fields).json()["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"guided_choice": ["red", "green"]}, "green"),
        ({"guided_regex": "[x-z]{3}"}, "xyz"),
        ({"guided_grammar": 'start: "ab" "cd"'}, "abcd"),
    ],
)
def test_other_conditions_are_followed(complete, fields, text):
    choice = complete(" ", **fields).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start"}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"$ref": "http://example.com/a"}}, "guided_json"),
        ({"guided_choice": ["\u00e9"]}, "guided_choice"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(complete, fields, param):
    reply = complete(**fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


CHOICES = ["required", {"type": "function", "function": {"name": "look_up"}}]


@pytest.mark.parametrize("choice", CHOICES, ids=["required", "named"])
def test_a_forced_call(ask, choice):
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    answer = ask(**fields).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    [call] = answer["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look_up")
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)

    chunks = [one["choices"][0] for one in events(ask(stream=True, **fields))]
    pieces = [one["delta"]["tool_calls"][0] for one in chunks if "tool_calls" in one["delta"]]
    assert pieces[0]["function"] == {"name": "look_up", "arguments": ""}
    assert pieces[0]["id"]
    assert {piece["index"] for piece in pieces} == {0}
    joined = "".join(piece["function"]["arguments"] for piece in pieces)
    assert json.loads(joined) == json.loads(call["function"]["arguments"])
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_without_a_call_an_answer_is_content(ask):
    for fields in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}):
        answer = ask(tools=[TOOL], max_tokens=3, **fields).json()["choices"][0]
        assert (answer["message"]["content"], answer["finish_reason"]) == (";<=", "length")
        assert "tool_calls" not in answer["message"]


def test_a_model_that_calls_no_tools_says_so(chat):
    reply = chat(tools=[TOOL])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "tools"


def test_an_answer_that_fails_is_an_error(complete, engine, monkeypatch):
    step = engine.step

    def failing():
        deltas = step()
        for delta in deltas:
            delta.finish_reason, delta.error = "error", "out of luck"
        return deltas

    monkeypatch.setattr(engine, "step", failing)
    reply = complete()
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "generation_failed"
    data = complete(stream=True).text.split("\n\n")
    assert json.loads(data[0].removeprefix("data: "))["error"]["message"] == "out of luck"
    assert data[1] == "data: [DONE]"
    guided = complete(guided_regex="x+")
    assert guided.status_code == 400
    assert guided.json()["error"]["param"] == "guided_regex"


def test_slow_grammars_are_given_up(complete, monkeypatch):
    monkeypatch.setattr(Guides, "_compile", lambda *args: time.sleep(0.3))
    monkeypatch.setattr(Guides.__init__, "__defaults__", (0.05,))
    bridge = Bridge(MODEL)
    engine = fake_engine()
    bridge.attach(engine, FakeTokenizer())
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        body = {"model": MODEL, "prompt": "a", "guided_regex": "a"}
        reply = client.post("/v1/completions", json=body)
    bridge.stop()
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "guided_regex"


def test_a_grammar_that_waits_its_turn_too_long_is_a_503(monkeypatch):
    """Those before it are slow; nothing is wrong with it."""
    monkeypatch.setattr(Guides, "_compile", lambda *args: time.sleep(0.3))
    guides = Guides(SimpleNamespace(tokenizer=None, vocab=128), seconds=0.1)

    async def ask_all():
        asked = [guides.constraints(Guide("regex", "a", "guided_regex"), 1) for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    slow, also_slow, *waited = asyncio.run(ask_all())
    assert {type(slow), type(also_slow)} == {RequestError}
    for error in waited:
        assert isinstance(error, ApiError), error
        assert (error.status, error.code, error.headers) == (
            503,
            "queue_full",
            {"Retry-After": "1"},
        )
