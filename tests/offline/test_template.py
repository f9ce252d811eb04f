"""Prompts out of rows: {field} is all there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpuinfer.errors import ConfigError
from tpuinfer.offline.task import LineError
from tpuinfer.offline.template import Template, text_of

NAMES = st.text(
    st.characters(exclude_characters="{}.[]!:", exclude_categories=("Cs",)), min_size=1, max_size=8
)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def test_fields_are_put_in_and_braces_are_doubled():
    template = Template('{{"q": "{text}"}} in {to}, {text}')
    assert template.fields == ("text", "to")
    assert template.render({"text": "a {b}", "to": "fr"}) == '{"q": "a {b}"} in fr, a {b}'


@given(st.lists(st.tuples(TEXTS, NAMES, TEXTS), min_size=1, max_size=5))
def test_what_is_around_the_fields_stays_as_it_is(parts):
    row = {name: f"<{name}>" for _, name, _ in parts}
    text = "".join(f"{escaped(before)}{{{name}}}{escaped(after)}" for before, name, after in parts)
    wanted = "".join(f"{before}<{name}>{after}" for before, name, after in parts)
    assert Template(text).render(row) == wanted


@given(st.text("{}ab.!:[0]", max_size=12))
def test_any_text_is_a_template_or_one_clear_error(text):
    try:
        template = Template(text)
    except ConfigError:
        with pytest.raises(ConfigError, match=r"^template[^\n]+$"):
            Template(text)
    else:
        assert template.render(dict.fromkeys(template.fields, "x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a.b}", "'.' stands in no name"),
        ("{a[0]}", "'[' stands in no name"),
        ("{a!r}", "'!' stands in no name"),
        ("{a:>9}", "':' stands in no name"),
        ("{}", "{} names no field"),
        ("hello {name", "'{' at character 7 has no partner"),
        ("name}", "'}' at character 5 has no partner"),
        ("{{a}", "'}' at character 4 has no partner"),
        ('answer as {"x": 1}: {a}', "write {{ and }} for braces that are text"),
        ("the same for all", "has no {field}"),
        ("{{a}}", "has no {field}"),
    ],
)
def test_anything_else_in_braces_is_refused(text, words):
    with pytest.raises(ConfigError) as error:
        Template(text)
    assert words in str(error.value)


def test_an_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"in.csv has no field 'txet'; did you mean 'text'\?"):
        Template("{id}: {txet}").check(["id", "text"], "in.csv")
    Template("{id}: {text}").check(["id", "text"], "in.csv")


@pytest.mark.parametrize(
    ("value", "text"),
    [("a\n", "a\n"), ("", ""), (3, "3"), (True, "true"), (False, "false"), (0.5, "0.5")],
)
def test_numbers_and_booleans_are_written_as_json_writes_them(value, text):
    assert text_of({"a": value}, "a") == text


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "null"), ([1], "a list"), ({"b": 1}, "an object")]
)
def test_what_is_no_text_is_an_error_of_the_line(value, kind):
    with pytest.raises(LineError, match=f"field 'a' is {kind}") as error:
        text_of({"a": value}, "a")
    assert (error.value.param, error.value.code) == ("a", "invalid_type")


def test_a_missing_field_names_those_that_are_there():
    row = {f"column{at}": "x" for at in range(30)}
    with pytest.raises(LineError) as error:
        Template("{column}").render(row)
    assert error.value.param == "column"
    assert "no field 'column'" in str(error.value)
    assert "'column19' and 10 more" in str(error.value)
    assert "column20" not in str(error.value)
