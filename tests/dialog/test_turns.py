import json
from typing import Any

import pytest
from walks import meaning, read

from tpuinfer.dialog.formats import TOOL_PARSERS, find_format
from tpuinfer.dialog.turns import turns
from tpuinfer.errors import RequestError
from tpuinfer.tokenizer.template import ChatTemplate

_ARGUMENTS = {"city": 'Pa"ris', "days": [1, None], "in": {"a": True}}
_CALL = {
    "id": "call_0123456789",
    "type": "function",
    "function": {"name": "f", "arguments": json.dumps(_ARGUMENTS)},
}
_MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?", "name": None},
    {"role": "assistant", "content": None, "tool_calls": [_CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "Sun"},
]
_JSON = '{"name": "{{ c.function.name }}", "KEY": {{ c.function.arguments | tojson }}}'
_CALLS = (
    "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}BODY{% endfor %}{% endfor %}"
)
_BODIES = {
    "hermes": "<tool_call>\n" + _JSON.replace("KEY", "arguments") + "\n</tool_call>\n",
    "llama3_json": _JSON.replace("KEY", "parameters"),
    "granite": "<|tool_call|>[" + _JSON.replace("KEY", "arguments") + "]",
    "mistral": "[TOOL_CALLS] [{{ c.function | tojson }}]",
    "harmony": (
        "<|channel|>commentary to=functions.{{ c.function.name }} <|constrain|>json<|message|>"
        "{{ c.function.arguments | tojson }}<|call|>"
    ),
    "pythonic": (
        "[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}"
        "{{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}{% endfor %})]"
    ),
}


@pytest.mark.parametrize("name", [*_BODIES])
def test_what_a_template_writes_of_a_call_is_read_as_that_call(name: str) -> None:
    form = TOOL_PARSERS[name]
    template = ChatTemplate(_CALLS.replace("BODY", _BODIES[name]))
    text = template.render(turns(form, _MESSAGES), add_generation_prompt=False)
    content, _, calls = meaning(read(form, text))
    assert content == ""
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("f", _ARGUMENTS)]


def test_the_shape_that_templates_expect() -> None:
    user, answer, result = turns(TOOL_PARSERS["hermes"], _MESSAGES)
    assert user == {"role": "user", "content": "Weather?"}
    assert answer["content"] == ""
    assert answer["reasoning_content"] == "hm"
    assert answer["tool_calls"][0]["function"]["arguments"] == _ARGUMENTS
    assert (result["name"], result["tool_call_id"]) == ("f", "call_0123456789")
    assert _MESSAGES[1]["content"] is None


def test_mistral_gets_nine_letters_that_agree() -> None:
    _, answer, result = turns(TOOL_PARSERS["mistral"], _MESSAGES)
    short = answer["tool_calls"][0]["id"]
    assert result["tool_call_id"] == short
    assert len(short) == 9
    assert short.isalnum()
    kept = {"role": "tool", "tool_call_id": "abcDEF123", "content": ""}
    assert turns(TOOL_PARSERS["mistral"], [kept])[0]["tool_call_id"] == "abcDEF123"


def test_harmony_reads_reasoning_by_another_name() -> None:
    answer = turns(find_format("", {}, tool_parser="harmony"), _MESSAGES)[1]
    assert answer["thinking"] == "hm"
    assert "reasoning_content" not in answer


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 100_000, 3])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(RequestError, match="arguments of f") as caught:
        turns(TOOL_PARSERS["hermes"], [{"role": "assistant", "tool_calls": [call]}])
    assert caught.value.param == "messages"
    assert len(str(caught.value)) < 300


def test_calls_of_no_form_are_refused() -> None:
    with pytest.raises(RequestError, match="function"):
        turns(TOOL_PARSERS["hermes"], [{"role": "assistant", "tool_calls": ["f"]}])
