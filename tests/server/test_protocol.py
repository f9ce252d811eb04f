import pytest
from pydantic import ValidationError
from served import MODEL

from tpuinfer.server.protocol import ChatBody, CompletionBody, Message, shown

NEUTRAL = {
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "store": False,
    "user": "someone",
    "metadata": {"run": "7"},
    "seed": None,
    "foo": None,
}
NEUTRAL_CHAT = {
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "top_logprobs": 0,
}
NEUTRAL_COMPLETION = {"best_of": 1, "echo": False, "suffix": None}


@pytest.mark.parametrize(("name", "value"), (NEUTRAL | NEUTRAL_CHAT).items())
def test_chat_accepts_what_asks_for_nothing(chat, name, value):
    reply = chat(max_tokens=1, **{name: value})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("name", "value"), (NEUTRAL | NEUTRAL_COMPLETION).items())
def test_completion_accepts_what_asks_for_nothing(complete, name, value):
    reply = complete(max_tokens=1, **{name: value})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"n": True}, "n", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"\ud800{x}": 1}, "?{x}", "unknown_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 10**400}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**400}, "max_tokens", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": "\udc00"}, "stop", "invalid_unicode"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_type"),
        ({"stop_token_ids": [500]}, "stop_token_ids", "invalid_value"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"\ud800": 1}}, "metadata.\ufffd\ufffd\ufffd", "invalid_type"),
    ],
)
def test_both_endpoints_refuse_by_name(chat, complete, fields, param, code):
    for reply in (chat(**fields), complete(**fields)):
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content.image_url",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"best_of": 1}, "best_of"),
    ],
)
def test_chat_refuses_by_name(chat, fields, param):
    reply = chat(**fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [500]}, "prompt"),
        ({"prompt": ["ok", "\ud800"]}, "prompt"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"tools": []}, "tools"),
    ],
)
def test_completion_refuses_by_name(complete, fields, param):
    reply = complete(**fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_a_misspelt_name_meets_its_neighbour(complete):
    message = complete(temprature=1).json()["error"]["message"]
    assert message == "unknown parameter 'temprature': did you mean 'temperature'?"


def test_a_refusal_says_what_would_work(complete):
    assert complete(n=2).json()["error"]["message"] == (
        "n is 2: not supported yet; leave it out or give 1"
    )


def test_developer_is_system_and_parts_are_joined():
    parts = [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]
    message = Message.model_validate({"role": "developer", "content": parts})
    assert message.turn() == {"role": "system", "content": "be\nbrief"}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_forms_of_a_prompt(prompt, prompts):
    assert CompletionBody.model_validate({"model": MODEL, "prompt": prompt}).prompts() == prompts


def test_equal_limits_are_no_conflict():
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    both = ChatBody.model_validate(body | {"max_tokens": 3, "max_completion_tokens": 3})
    assert both.max_completion_tokens == 3


def test_a_body_must_be_an_object():
    with pytest.raises(ValidationError):
        CompletionBody.model_validate([])


def test_shown_is_json_and_short():
    assert shown(True) == "true"
    assert shown({}) == "{}"
    assert shown("x" * 100) == '"' + "x" * 36 + "..."
