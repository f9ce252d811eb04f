import datetime
from typing import Any

import pytest

from tpuinfer.errors import RequestError, TokenizerError
from tpuinfer.tokenizer.template import ChatTemplate

HELLO = [{"role": "user", "content": "<hé>"}]


def _render(source: str, **extra: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render(HELLO, add_generation_prompt=False, **extra)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s><hé>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<hé>"}]'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", '{\n "b": 1,\n "a": 2\n}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ add_generation_prompt }}", "False"),
        (
            "{% if tools %}t{% endif %}{% if documents %}d{% endif %}{% if missing %}m{% endif %}",
            "",
        ),
        ("{{ messages[0].missing }}", ""),
    ],
)
def test_what_templates_may_use(source: str, expected: str) -> None:
    assert _render(source) == expected


def test_extra_variables_reach_the_template() -> None:
    assert _render("{{ enable_thinking }}", enable_thinking=False) == "False"


def test_strftime_now() -> None:
    before = datetime.datetime.now().strftime("%Y")
    assert _render("{{ strftime_now('%Y') }}") in {
        before,
        datetime.datetime.now().strftime("%Y"),
    }


def test_a_template_can_refuse_messages() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        _render("{{ raise_exception('roles must\n alternate') }}")
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages[0].missing.deeper }}",
        "{{ 'a' + 1 }}",
        "{{ none + 'a' }}",
        "{{ 1 / 0 }}",
    ],
)
def test_unsafe_or_failing_templates_give_one_line(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        _render(source)
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(RequestError):
        ChatTemplate("{% set _ = messages[0].update({'role': 'y'}) %}").render(
            messages, add_generation_prompt=True
        )
    assert messages == [{"role": "user", "content": "x"}]


def test_a_template_that_does_not_parse_is_the_tokenizer_s_fault() -> None:
    with pytest.raises(TokenizerError, match="line 2"):
        ChatTemplate("x\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
        "{% if true %}" * 150 + "{% endif %}" * 150,
        "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
        "{{ " + "1" * 5000 + " }}",
    ],
)
def test_a_template_beyond_python_s_own_bounds_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(TokenizerError, match=r"^mine: Python cannot compile it") as caught:
        ChatTemplate(source, name="mine")
    assert "\n" not in str(caught.value)


def test_a_clock_that_is_given_goes_before_the_time_and_need_not_be_read() -> None:
    clock = datetime.datetime(1970, 1, 2).strftime
    assert _render("{{ strftime_now('%Y-%m-%d') }}", strftime_now=clock) == "1970-01-02"
    assert _render("plain", strftime_now=clock) == "plain"
