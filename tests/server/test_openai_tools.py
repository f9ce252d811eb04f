"""Tools, structured answers, reasoning and scores through the openai client, on the fake engine.

The fake counts up, so its answers are the grammars' doing, and its log-probability of id t is
-t / 128.
"""

import contextlib
import json
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.engine.engine import Engine
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("look_up", "forget")
]
NAMED = {"type": "function", "function": {"name": "forget"}}


class Weather(BaseModel):
    unit: Literal["C", "F"]
    dry: bool


class HermesTokenizer(FakeTokenizer):
    """The fake with a template that knows tools, in Hermes' way."""

    template_source = "{{ tools }}<tool_call>"

    def apply_chat_template(self, messages, *, tools=None, **extra):
        return super().apply_chat_template(messages, **extra)


class ThinkingTokenizer(FakeTokenizer):
    template_source = "<think></think>"


THOUGHT = "<think>why</think>so"


def think(tokens, shift):
    """Answers a chat with THOUGHT, and ends."""
    said = "".join(map(chr, tokens)).rpartition("assistant:")[2]
    return ord(THOUGHT[len(said)]) if len(said) < len(THOUGHT) else 0


@contextlib.contextmanager
def serving(tokenizer, **runner):
    bridge = Bridge(MODEL)
    bridge.attach(Engine(FakeRunner(slots=4, capacity=512, **runner), tokenizer), tokenizer)
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as http:
        yield openai.OpenAI(
            base_url="http://testserver/v1", api_key="x", http_client=http, max_retries=0
        )


@pytest.fixture
def client():
    with serving(HermesTokenizer()) as client:
        yield client


@pytest.fixture
def chat(client):
    def ask(**fields):
        given = {"model": MODEL, "messages": MESSAGES, "temperature": 0} | fields
        return client.chat.completions.create(**given)

    return ask


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_whole_and_streamed(chat, choice):
    fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    whole = chat(**fields).choices[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    [call] = whole.message.tool_calls
    assert call.function.name in (("forget",) if choice is NAMED else ("look_up", "forget"))
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)

    deltas = [chunk.choices[0] for chunk in chat(stream=True, **fields)]
    pieces = [one.delta.tool_calls[0] for one in deltas if one.delta.tool_calls]
    assert pieces[0].function.name == call.function.name
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert deltas[-1].finish_reason == "tool_calls"


def test_a_call_and_its_result_make_another_turn(chat):
    fields = {"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False}
    message = chat(**fields).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
    again = chat(messages=[*MESSAGES, message, result], tools=TOOLS, max_tokens=3)
    assert again.choices[0].message.content == ";<="


def test_parse_gives_an_object_of_the_class(client):
    reply = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, temperature=0, response_format=Weather
    )
    assert isinstance(reply.choices[0].message.parsed, Weather)
    assert reply.choices[0].finish_reason == "stop"


def test_alternatives_of_several_answers(chat):
    reply = chat(n=3, max_tokens=2, logprobs=True, top_logprobs=2, temperature=1, seed=0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.message.content for choice in reply.choices] == [";<", "<>", "=@"]
    for choice in reply.choices:
        for one in choice.logprobs.content:
            first, second = one.top_logprobs
            assert (one.token, one.logprob) == (first.token, first.logprob)
            assert ord(second.token) == ord(first.token) + 1
    assert reply.usage.completion_tokens == 6


@pytest.mark.parametrize("most", [1, 0])
def test_an_echo_with_scores(client, most):
    reply = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=most, echo=True, logprobs=1, temperature=0
    )
    text, scores = "abcd"[: 3 + most], reply.choices[0].logprobs
    assert reply.choices[0].text == text
    assert (scores.tokens, scores.text_offset) == (list(text), list(range(len(text))))
    assert scores.token_logprobs == [None, *(-ord(letter) / 128 for letter in text[1:])]
    assert scores.top_logprobs[0] is None
    assert scores.top_logprobs[1] == {"b": -98 / 128}
    assert reply.usage.completion_tokens == most


def test_reasoning_is_told_apart_whole_and_streamed():
    fields = {"model": MODEL, "messages": MESSAGES, "temperature": 0}
    with serving(ThinkingTokenizer(), rule=think) as client:
        whole = client.chat.completions.create(**fields).choices[0].message
        chunks = list(client.chat.completions.create(stream=True, **fields))
    assert (whole.reasoning_content, whole.content) == ("why", "so")
    said = {"reasoning_content": "", "content": ""}
    for chunk in chunks:
        for name in said:
            said[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert said == {"reasoning_content": "why", "content": "so"}
