import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walks import meaning, read

from tpuinfer.dialog.formats import HARMONY_MARKS, TOOL_PARSERS, Format, find_format
from tpuinfer.dialog.json_text import JsonScanner
from tpuinfer.dialog.pieces import CallArguments
from tpuinfer.dialog.reader import Reader

_CONTROLS = {"<|python_tag|>": 1, "[TOOL_CALLS]": 2, "[ARGS]": 3, "<|tool_call|>": 4}
_CONTROLS |= {mark: 10 + at for at, mark in enumerate(HARMONY_MARKS)}
_HERMES = (
    "<think>\nTwo cities.\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "f", "arguments": {"city": "Pa\\"ris", "in": [1, {"a": null}]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
_HARMONY = (
    "<|channel|>analysis<|message|>It wants f.<|end|><|start|>assistant<|channel|>commentary"
    "<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    '<|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
)


def _form(name: str) -> Format:
    reasoning = {"hermes": "think", "mistral": "mistral"}.get(name, "none")
    return find_format("", _CONTROLS, tool_parser=name, reasoning_parser=reasoning)


TRANSCRIPTS: list[tuple[str, str, str, str, list[tuple[str, Any]]]] = [
    (
        "hermes",
        _HERMES,
        "I look.\n",
        "Two cities.\n",
        [("f", {"city": 'Pa"ris', "in": [1, {"a": None}]}), ("g", {})],
    ),
    ("hermes", "Just < text & \n no call", "Just < text & \n no call", "", []),
    ("hermes", " \n Hi", " \n Hi", "", []),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}', "", "", [("f", {"a": 1})]),
    (
        "hermes",
        '<tool_call>[{"name": "f"}, {"name": "g"}]</tool_call>',
        "",
        "",
        [("f", {}), ("g", {})],
    ),
    ("hermes", '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}', "", "", [("f", {"a": 1})]),
    (
        "hermes",
        '<tool_call>{"name":"f","arguments":{"a":"x\ny\t"}}',
        "",
        "",
        [("f", {"a": "x\ny\t"})],
    ),
    (
        "hermes",
        'a <tool_call>{"x": 1}</tool_call> b',
        'a <tool_call>{"x": 1}</tool_call> b',
        "",
        [],
    ),
    ("hermes", "say <tool_call> or <tool_", "say <tool_call> or <tool_", "", []),
    ("hermes", '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', "", []),
    ("hermes", "<think>open to the end", "", "open to the end", []),
    ("hermes", "later <think>no</think>", "later <think>no</think>", "", []),
    (
        "llama3_json",
        '{"name": "f", "parameters": {"a": true}}; {"name": "g", "parameters": {}}',
        "",
        "",
        [("f", {"a": True}), ("g", {})],
    ),
    ("llama3_json", '<|python_tag|>{"name":"f","parameters":{}}<|eom_id|>', "", "", [("f", {})]),
    ("llama3_json", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', "", []),
    ("llama3_json", '{"name": "f", "age": 3}', '{"name": "f", "age": 3}', "", []),
    ("llama3_json", '{"name": "f"}', '{"name": "f"}', "", []),
    (
        "llama3_json",
        '{"name": "Bob", "parameters": {}}',
        '{"name": "Bob", "parameters": {}}',
        "",
        [],
    ),
    ("llama3_json", "<|python_tag|>print(1)", "print(1)", "", []),
    (
        "mistral",
        '[THINK]hm[/THINK][TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "x"}]',
        "",
        "hm",
        [("f", {"a": 1})],
    ),
    (
        "mistral",
        'Ok.[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        "Ok.",
        "",
        [("f", {"a": 1}), ("g", {})],
    ),
    ("mistral", "[TOOL_CALLS] what now", " what now", "", []),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {}}]', "", "", [("f", {})]),
    ("phi4_mini_json", 'functools[{"name": "f", "arguments": {}}]', "", "", [("f", {})]),
    (
        "pythonic",
        "[f(a='it\\'s', b=[1, -2.5e3, (True, None)], c={\"k\": ')]'}), g()]",
        "",
        "",
        [("f", {"a": "it's", "b": [1, -2500.0, [True, None]], "c": {"k": ")]"}}), ("g", {})],
    ),
    ("pythonic", "<|python_start|>[f(a=1)]<|python_end|>", "", "", [("f", {"a": 1})]),
    ("pythonic", "```tool_code\nf(a=1)\n```", "", "", [("f", {"a": 1})]),
    ("pythonic", "[f](link) and [1]", "[f](link) and [1]", "", []),
    ("pythonic", "[f(1)] [f(a=b)]", "[f(1)] [f(a=b)]", "", []),
    (
        "pythonic",
        "[f(a=1), f(a=__import__('os'))]",
        "f(a=__import__('os'))]",
        "",
        [("f", {"a": 1})],
    ),
    ("pythonic", "[other(a=1)]", "[other(a=1)]", "", []),
    ("harmony", _HARMONY, "I look.", "It wants f.", [("f", {"city": "Oslo"})]),
    ("harmony", " to=functions.g<|channel|>commentary json<|message|>", "", "", [("g", {})]),
    ("harmony", "<|channel|>final<|message|>Hi <b><|return|>", "Hi <b>", "", []),
    ("harmony", "no message at all", "no message at all", "", []),
]


@pytest.mark.parametrize(("name", "text", "content", "reasoning", "calls"), TRANSCRIPTS)
def test_transcripts_cut_at_every_place(
    name: str, text: str, content: str, reasoning: str, calls: list[Any]
) -> None:
    form = _form(name)
    whole = read(form, text)
    found = meaning(whole)
    assert found[:2] == (content, reasoning)
    assert [(call.name, json.loads(call.arguments)) for call in found[2]] == calls
    for cut in (1, 2, 3, 5, 7):
        assert read(form, text, cut=cut) == whole
    for at in range(len(text)):
        ids = iter(range(99))
        reader = Reader(form, ("f", "g"), new_id=map("c{}".format, ids).__next__)
        pieces = reader.push(text[:at]) + reader.push(text[at:]) + reader.finish()
        assert meaning(pieces) == found


_PARTS = [
    "<tool_call>", "</tool_call>", '{"name": "f", ', '"arguments": ', '{"a": 1}', "}", "{", "[",
    "]", '"', "\\", "f(a=1)", "(", ")", ", ", "; ", "'", "\n", "<think>", "</think>", "<",
    "[TOOL_CALLS]", "[ARGS]", "f", "<|python_tag|>", "functools", "<|tool_call|>", "12", "null",
    "word ", *HARMONY_MARKS,
]  # fmt: skip


@pytest.mark.parametrize("name", [*TOOL_PARSERS])
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(_PARTS), max_size=25), data=st.data())
def test_cuts_never_matter(name: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    form = _form(name)
    whole = read(form, text)
    assert read(form, text, cut=data.draw(st.integers(1, 9))) == whole
    assert read(form, text, cut=1) == whole


@pytest.mark.parametrize("name", sorted(set(TOOL_PARSERS) - {"harmony"}))
@settings(max_examples=60, deadline=None)
@given(text=st.text("<tool_cal>{}[]()\"'\\:,; f1\n", max_size=60))
def test_text_without_calls_is_lost_to_nobody(name: str, text: str) -> None:
    content, reasoning, calls = meaning(read(_form(name), text, tools=("absent",), cut=1))
    assert calls or reasoning or content == text


def test_arguments_stream_as_they_come() -> None:
    reader = Reader(_form("hermes"), ("f",))
    assert reader.push('<tool_call>{"name": "f", "arguments": ') == []
    assert len(reader.push('{"city": "Pa')) == 2
    assert reader.push("ris") == [CallArguments(0, "ris")]
    assert reader.calls == 1


def test_reasoning_that_the_prompt_opened() -> None:
    form = _form("hermes")
    assert meaning(read(form, "hm\n</think>\n\nHi", end="<think>\n"))[:2] == ("Hi", "hm\n")
    assert meaning(read(form, "hm</think>Hi", end="</think>\n"))[0] == "hm</think>Hi"


def test_without_tools_calls_are_text_and_control_tokens_are_gone() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert meaning(read(_form("hermes"), text, tools=()))[0] == text
    assert meaning(read(_form("mistral"), "[TOOL_CALLS]f", tools=()))[0] == "f"


def test_ids_are_unique_and_as_long_as_the_model_wants() -> None:
    text = '[TOOL_CALLS] [{"name": "f"}, {"name": "g"}]'
    reader = Reader(_form("mistral"), ("f", "g"))
    ids = [call.id for call in meaning(reader.push(text))[2]]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids)


@pytest.mark.parametrize("name", [*TOOL_PARSERS])
@pytest.mark.parametrize(
    "unit",
    ["<", "<tool_call>", '<tool_call>{"a":["', "{", "[", '{"name": "f", "arguments": [', "\\", '"',
     "\n", " ", "f(", "[f(", "<think>", "<|channel|>", "[TOOL_CALLS]", "[f(a='", '{"arguments": "',
     '<tool_call>{"name": "f", "arguments": {"a": 1}}'],
)  # fmt: skip
def test_work_grows_with_the_text_and_no_faster(name: str, unit: str) -> None:
    assert _lines(name, unit, 2400) < 2.6 * _lines(name, unit, 1200) + 2000


def _lines(name: str, unit: str, size: int) -> int:
    """Lines of Python run to read `size` characters of a repeated unit, three at a time."""
    form = _form(name)
    text = (unit * size)[:size]
    lines = 0

    def count(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        reader = Reader(form, ("f", "g"))
        for at in range(0, size, 3):
            reader.push(text[at : at + 3])
        reader.finish()
    finally:
        sys.settrace(before)
    return lines


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ),
    pretty=st.booleans(),
    cut=st.integers(1, 7),
)  # fmt: skip
def test_the_scanner_takes_json_and_stops_behind_it(value: Any, pretty: bool, cut: int) -> None:
    text = json.dumps({"v": value}, indent=2 if pretty else None)
    scanner, out, tail = JsonScanner(), "", " more"
    for start in range(0, len(text + tail), cut):
        part, at = (text + tail)[start : start + cut], 0
        while at < len(part) and not scanner.done:
            got, at = scanner.step(part, at)
            out += got
    assert (scanner.done, out) == (True, text)
