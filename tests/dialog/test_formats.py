import pytest

from tpuinfer.dialog.formats import HARMONY_MARKS, find_format
from tpuinfer.errors import ConfigError, RequestError


@pytest.mark.parametrize(
    ("template", "name", "thinks"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes", False),
        ("{% if tools %}<tool_call>{% endif %}</think>", "hermes", True),
        ("{% if tools %}<|python_tag|>{% endif %}", "llama3_json", False),
        ("{% if tools %}[TOOL_CALLS]{% endif %}[THINK]", "mistral", True),
        ("{% if tools %}<|tool_call|>{% endif %}", "granite", False),
        ("{% if tools %}<|tool|>{{ tools }}<|/tool|>{% endif %}", "phi4_mini_json", False),
        ("{% if tools %}<|python_start|>{% endif %}", "pythonic", False),
        ("<|channel|>final<|message|>", "harmony", False),
        ("{{ messages }}<think>", "plain", True),
        ("{{ messages }}", "plain", False),
        ("", "plain", False),
        ("{% if tools %}<tool_call><function=f>{% endif %}", "plain", False),
        ("{% if tools %}<tool_call>f<arg_key>{% endif %}", "plain", False),
    ],
)
def test_the_template_shows_how_a_model_writes(template: str, name: str, thinks: bool) -> None:
    form = find_format(template, {})
    assert (form.name, form.thinking is not None) == (name, thinks)
    assert form.calls_tools == (name != "plain")


def test_names_override_the_template() -> None:
    template = "{{ tools }}<tool_call><think>"
    form = find_format(template, {}, tool_parser="llama4_pythonic", reasoning_parser="none")
    assert (form.name, form.thinking) == ("pythonic", None)
    assert find_format(template, {}, tool_parser="openai").name == "harmony"
    found = find_format("", {}, reasoning_parser="deepseek_r1").thinking
    assert found == ("<think>", "</think>")


@pytest.mark.parametrize(
    ("parsers", "words"),
    [
        ({"tool_parser": "hermess"}, "--tool-call-parser is hermess.*nearest: hermes"),
        ({"reasoning_parser": "thinks"}, "--reasoning-parser is thinks.*nearest: think"),
    ],
)
def test_unknown_names_are_refused(parsers: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_format("", {}, **parsers)


def test_markers_that_are_control_tokens_stay_in_the_text() -> None:
    controls = {mark: 10 + at for at, mark in enumerate(HARMONY_MARKS)} | {"<pad>": 3}
    form = find_format("", controls, tool_parser="harmony")
    assert form.shown_controls == tuple(range(10, 17))
    mistral = find_format("{{ tools }}[TOOL_CALLS]", {"[TOOL_CALLS]": 5, "[ARGS]": 6})
    assert (mistral.shown_controls, mistral.listed) == ((5, 6), False)
    assert find_format("{{ tools }}[TOOL_CALLS]", {"[TOOL_CALLS]": 5}).listed


def test_where_the_prompt_left_the_reasoning() -> None:
    form = find_format("<think>", {})
    assert form.opened("assistant\n<think>\n")
    assert not form.opened("assistant\n")
    assert form.closed("<think>\n\n</think>\n\n")


def test_tools_are_refused_where_nothing_reads_them() -> None:
    with pytest.raises(RequestError, match="--tool-call-parser") as caught:
        find_format("", {}).check_tools()
    assert caught.value.param == "tools"
    find_format("", {}, tool_parser="hermes").check_tools()
