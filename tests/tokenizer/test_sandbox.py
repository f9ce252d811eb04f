"""What a checkpoint's template may make: the operators' own results, up to a bound."""

import tracemalloc

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from tpuinfer.tokenizer.sandbox import LIMIT, Sandbox

_WITHIN = [
    "{{ 'ab' * 3 }}{{ 2 * [1] }}{{ 'a' * -1 }}{{ 3 * 4 }}{{ 1.5 * 2 }}{{ true * 2 }}",
    "{{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2.0 ** 3 }} {{ (0 - 3) ** 2 }}",
    "{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 1 + 2.5 }}",
    "{{ 'a' ~ 1 ~ none ~ missing ~ true ~ [1] ~ word }}",
    "{{ '<' ~ word ~ ('<b>' | safe) }}{{ ('<b>' | escape) ~ '<' }}",
    "{% autoescape true %}{{ '<' ~ word ~ ('<b>' | safe) }}{% endautoescape %}",
    "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(word) ~ twice(1) }}",
    "{% set x %}{{ word }}!{% endset %}{{ x + x }}{% filter upper %}{{ x }}{% endfilter %}",
]


@pytest.mark.parametrize("source", _WITHIN)
def test_within_the_bounds_all_is_as_in_jinja2(source: str) -> None:
    want = jinja2.Environment().from_string(source).render(word="<w>")
    assert Sandbox().from_string(source).render(word="<w>") == want


def _doubled(change: str) -> str:
    """Two characters, doubled 25 times by `change`: four times the bound."""
    loop = "{% set n = namespace(x='aa') %}{% for i in range(25) %}" + change + "{% endfor %}"
    return "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}" + loop


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ 'a' * 100000000 }}", r"more than 16777216 characters or entries with \*"),
        ("{{ 100000000 * 'a' }}", r"with \*"),
        ("{{ ([1] * 20000000) | length }}", r"with \*"),
        ("{{ 10 ** 100000 }}", r"a number of more than 4096 bits with \*\*"),
        (_doubled("{% set n.x = n.x + n.x %}"), r"with \+"),
        (_doubled("{% set n.x = n.x ~ n.x %}"), "with ~"),
        (_doubled("{% autoescape true %}{% set n.x = n.x ~ n.x %}{% endautoescape %}"), "with ~"),
        (_doubled("{% set n.x = twice(n.x) %}"), "writes more than 16777216 characters"),
        (_doubled("{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}"), "writes more"),
        (
            "{% set n = namespace(x=10) %}{% for i in range(14) %}{% set n.x = n.x * n.x %}"
            "{% endfor %}",
            "more than 4096 bits",
        ),
        (
            "{% for i in range(100) %}{% for j in range(100) %}{{ word }}{% endfor %}{% endfor %}",
            "writes more than 16777216 characters",
        ),
    ],
)
def test_beyond_them_it_fails_before_the_memory_is_taken(source: str, match: str) -> None:
    template = Sandbox().from_string(source)
    tracemalloc.start()
    try:
        with pytest.raises(SecurityError, match=match) as caught:
            template.render(word="hello " * 1000)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_the_bound_itself_is_allowed() -> None:
    template = Sandbox().from_string("{{ 'a' * count }}")
    assert len(template.render(count=LIMIT)) == LIMIT
    with pytest.raises(SecurityError):
        template.render(count=LIMIT + 1)


def test_a_long_chain_is_no_deep_one() -> None:
    source = "{{ " + " ~ ".join(["word"] * 1000) + " }}"
    assert Sandbox().from_string(source).render(word="ab") == "ab" * 1000
