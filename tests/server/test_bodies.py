import pytest
from pydantic import ValidationError
from served import MODEL

from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.fields import shown
from tpuinfer.server.messages import Message

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
    "parallel_tool_calls": True,
    "chat_template_kwargs": {},
}
TOOL = {"type": "function", "function": {"name": "look_up"}}
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
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -2.5}, "presence_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": 2.5}, "repetition_penalty", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"05": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"500": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [5]}, "logit_bias", "invalid_type"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "invalid_value"),
        ({"typical_p": 0.5}, "typical_p", "unsupported_parameter"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
        ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
        ({"bad_words": ["x"]}, "bad_words", "unsupported_parameter"),
        ({"store": 0}, "store", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            {"guided_regex": "a", "guided_choice": ["a"]},
            "guided_choice",
            "invalid_value",
        ),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "invalid_value"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"stop": "x" * 257}, "stop", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"\ud800{x}": 1}, None, "invalid_json"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 10**400}, None, "invalid_json"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**400}, None, "invalid_json"),
        ({"seed": 2**64}, "seed", "invalid_type"),
        ({"seed": -(2**63) - 1}, "seed", "invalid_type"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": "\udc00"}, None, "invalid_json"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_type"),
        ({"stop_token_ids": [500]}, "stop_token_ids", "invalid_value"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {"\ud800": 1}}, None, "invalid_json"),
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
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]},
            "messages[0].tool_call_id",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content.image_url",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
        ({"chat_template_kwargs": {"thinking": []}}, "chat_template_kwargs.thinking"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"echo": True}, "echo"),
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
        ({"prompt": ["ok", "\ud800"]}, None),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": "x" * 1000}, "prompt"),
        ({"prompt": ["a", "b"], "n": 65}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
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
    assert complete(best_of=2).json()["error"]["message"] == (
        "best_of is 2: not supported; leave it out or give 1"
    )
    assert complete(min_p=1.5).json()["error"]["message"] == (
        "min_p is 1.5: must be in [0, 1]; nearest: 1"
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
