import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import llguidance
import pytest
from walks import Bytes, meaning, read, walk

from tpuinfer.dialog.formats import HARMONY_MARKS, TOOL_PARSERS, Format, find_format
from tpuinfer.dialog.guides import guide_of
from tpuinfer.dialog.tools import Tool, ToolChoice
from tpuinfer.errors import RequestError
from tpuinfer.grammar.lark import prepare

_NESTED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", 'b"]', "c)"]},
        "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
        "note": {"type": "string", "maxLength": 5},
        "deep": {"type": ["boolean", "null"]},
    },
    "required": ["kind", "points"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
_TOOLS = [Tool("f", "", _NESTED), Tool("g"), Tool("h", "", {"properties": {}})]
_OPTIONAL = {"a": {"type": "boolean"}, "b": {"enum": [1]}, "c": {"type": "null"}}
_REQUIRED = ToolChoice("required")
_CONTROLS = {
    "hermes": (),
    "llama3_json": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    "granite": ("<|tool_call|>",),
    "phi4_mini_json": ("<|tool_call|>", "<|/tool_call|>"),
    "pythonic": (),
    "harmony": HARMONY_MARKS,
}
_THINKING = {"hermes": "think", "mistral": "mistral", "granite": "think"}


def _form(name: str, tokens: Bytes) -> Format:
    reasoning = _THINKING.get(name, "none")
    return find_format("", tokens.controls, tool_parser=name, reasoning_parser=reasoning)


def _check(calls: list[Any], tools: list[Tool]) -> None:
    schemas = {tool.name: tool.schema for tool in tools}
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


def _text_of(guide: Any, tokens: Bytes, seed: int, stop: float = 0.7) -> str:
    assert guide is not None
    assert guide.kind == "grammar"
    return walk(tokens, guide.text, seed, stop)


@pytest.mark.parametrize("name", [*TOOL_PARSERS])
def test_forced_answers_are_calls_that_satisfy_their_schemas(name: str) -> None:
    tokens = Bytes(_CONTROLS[name])
    form = _form(name, tokens)
    guide = guide_of(form, _TOOLS[:2], _REQUIRED)
    counts, thoughts = set(), 0
    for seed in range(6):
        text = _text_of(guide, tokens, seed)
        content, reasoning, calls = meaning(read(form, text, tools=("f", "g"), cut=seed % 5))
        assert (content, calls != []) == ("", True), text
        _check(calls, _TOOLS)
        counts.add(len(calls))
        thoughts += bool(reasoning)
    assert name == "harmony" or max(counts) > 1
    assert bool(thoughts) == (name in _THINKING or name == "harmony")


@pytest.mark.parametrize("name", [*TOOL_PARSERS])
def test_one_call_of_a_named_tool(name: str) -> None:
    tokens = Bytes(_CONTROLS[name])
    form = _form(name, tokens)
    guide = guide_of(form, _TOOLS[:2], ToolChoice("named", "g"), prompt_end="</think>\n\n")
    for seed in range(4):
        content, _, calls = meaning(read(form, _text_of(guide, tokens, seed), cut=1))
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("g", {})]
        assert content == ""


def test_no_parallel_calls_where_they_are_not_wanted() -> None:
    tokens = Bytes(())
    form = _form("hermes", tokens)
    guide = guide_of(form, _TOOLS[:2], _REQUIRED, parallel=False)
    for seed in range(6):
        assert len(meaning(read(form, _text_of(guide, tokens, seed)))[2]) == 1


def test_reasoning_that_the_prompt_opened_goes_on_before_the_calls() -> None:
    tokens = Bytes(())
    form = _form("hermes", tokens)
    guide = guide_of(form, _TOOLS[1:2], _REQUIRED, prompt_end="assistant\n<think>\n")
    text = _text_of(guide, tokens, 1)
    content, reasoning, calls = meaning(read(form, text, end="assistant\n<think>\n"))
    assert text.startswith(reasoning[:1] or "\n")
    assert (content, calls[0].name) == ("", "g")
    assert "</think>" in text
    closed = guide_of(form, _TOOLS[1:2], _REQUIRED, prompt_end="<think>\n\n</think>\n\n")
    assert closed is not None
    assert "think" not in closed.text


def test_optional_arguments_in_any_selection() -> None:
    tool = Tool("f", "", {"properties": _OPTIONAL})
    guide = guide_of(TOOL_PARSERS["pythonic"], [tool], ToolChoice("named", "f"))
    seen = set()
    for seed in range(60):
        text = _text_of(guide, Bytes(()), seed)
        seen.add(tuple(json.loads(meaning(read(TOOL_PARSERS["pythonic"], text))[2][0].arguments)))
    assert len(seen) >= 6
    assert all(list(keys) == sorted(keys) for keys in seen)


@pytest.mark.parametrize("name", ["hermes", "granite", "mistral", "phi4_mini_json"])
def test_strict_tools_are_called_as_they_say_where_the_model_decides(name: str) -> None:
    tokens = Bytes(_CONTROLS[name])
    form = _form(name, tokens)
    guide = guide_of(form, [Tool("f", "", _NESTED, strict=True)], ToolChoice("auto"))
    called = 0
    for seed in range(10):
        _, _, calls = meaning(read(form, _text_of(guide, tokens, seed, 0.05), tools=("f",)))
        _check(calls, _TOOLS)
        called += len(calls)
    if form.controls:
        assert called


def _accepts(tokens: Bytes, grammar: str, text: str) -> bool:
    wrapped = llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokens))
    matcher = llguidance.LLMatcher(
        wrapped, llguidance.LLMatcher.grammar_from_lark(prepare(grammar, "tools"))
    )
    ids = tokens(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("text", "may_end"),
    [
        ("Hello <b>", True),
        ("Hello <tool_cal", True),
        ('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call> Done.', True),
        ('a<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>b<tool_call>', False),
        ('<tool_call>\n{"name": "g", "arguments": {"x": 1}}\n</tool_call>', False),
        ("<tool_call> words", False),
    ],
)
def test_where_strict_bites(text: str, may_end: bool) -> None:
    guide = guide_of(TOOL_PARSERS["hermes"], [Tool("g", strict=True)], ToolChoice("auto"))
    assert guide is not None
    assert _accepts(Bytes(()), guide.text, text) == may_end


def test_no_guide_where_the_model_decides() -> None:
    form = TOOL_PARSERS["hermes"]
    assert guide_of(form, _TOOLS, ToolChoice("auto")) is None
    assert guide_of(form, _TOOLS, ToolChoice("none")) is None
    assert guide_of(form, [Tool("f", strict=True)], ToolChoice("none")) is None


@pytest.mark.parametrize(
    ("name", "tool", "choice", "words"),
    [
        ("pythonic", Tool("f", "", {"properties": {"a-b": {}}}), "required", "a-b"),
        ("pythonic", Tool("f", "", {"minProperties": 1}), "required", "minProperties"),
        ("llama3_json", Tool("f", strict=True), "auto", "strict"),
        ("harmony", Tool("f", strict=True), "auto", "strict"),
        ("plain", Tool("f"), "required", "--tool-call-parser"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    name: str, tool: Tool, choice: Any, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        guide_of(find_format("", {}, tool_parser=name), [tool], ToolChoice(choice))
    assert caught.value.param == "tools"
