"""What the page's modules compute, asked of them in the browser they are for."""

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser, server):
    page = browser.new_page()
    page.goto(server.url)
    return page


@pytest.fixture
def call(page):
    """Evaluate `code`, which sees the module as `m` and a value as `arg`."""

    def evaluate(module, code, arg=None):
        return page.evaluate(
            f"async (arg) => {{ const m = await import('/page/{module}.js'); return {code}; }}", arg
        )

    return evaluate


@pytest.mark.parametrize(
    "pieces",
    [
        ["data: a\n\ndata: b\n\n"],
        list("data: a\n\ndata: b\n\n"),
        list("data: a\r\n\r\ndata:b\r\n\r\n"),
        [": comment\n\n", "event: x\ndata: a\n", "\ndata: b\n\ndata: cut"],
    ],
)
def test_events_end_where_a_blank_line_is(call, pieces):
    code = "((parse) => arg.flatMap((piece) => parse(piece)))(m.eventParser())"
    assert call("api", code, pieces) == ["a", "b"]


def test_an_event_s_lines_are_joined(call):
    assert call("api", "m.eventParser()(arg)", "data: a\ndata: b\n\n") == ["a\nb"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree", [("paragraph", "one\ntwo"), ("paragraph", "three")]),
        ("# Big\ntext", [("heading", "Big"), ("paragraph", "text")]),
        ("- a\n- b\n\n- c", [("bullets", ["a", "b", "c"])]),
        ("2. a\n3. b", [("numbers", ["a", "b"])]),
        ("- a\n  more", [("bullets", ["a\nmore"])]),
        ("```py\nx = 1\n\n# no heading\n```\nend", [("code", "x = 1\n\n# no heading")] * 1),
        ("````\n```\n````", [("code", "```")]),
        ("```\nnot closed", [("code", "not closed")]),
        ("#hashtag and 3.14", [("paragraph", "#hashtag and 3.14")]),
        ("", []),
    ],
)
def test_blocks(call, text, expected):
    found = call("markdown", "m.blocks(arg).map((b) => [b.kind, b.text ?? b.items])", text)
    assert [tuple(one) for one in found][: len(expected)] == expected
    assert len(found) == len(expected) + text.endswith("\nend")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a `<b>` c", "a <code>&lt;b&gt;</code> c"),
        ("**bold *both* end**", "<strong>bold <em>both</em> end</strong>"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("snake_case_name", "snake_case_name"),
        ("`**no**`", "<code>**no**</code>"),
        ("an **open end", "an **open end"),
        ("[link](javascript:alert(1))", "[link](javascript:alert(1))"),
    ],
)
def test_inline_marks(call, text, html):
    code = "((p) => (p.append(...m.inline(arg)), p.innerHTML))(document.createElement('p'))"
    assert call("markdown", code, text) == html


def test_a_block_that_did_not_change_keeps_its_node(call):
    code = """((p) => { m.render(p, "a\\n\\nb"); const first = p.children[0];
              m.render(p, "a\\n\\nbc");
              return [first === p.children[0], p.textContent]; })(document.createElement("div"))"""
    assert call("markdown", code) == [True, "abc"]


def test_metrics_are_summed_over_their_labels(call):
    text = '# HELP x y\nx{a="} 9",b="c"} 2\nx{a="d"} 3.5\ntpuinfer:slots 8.0 1700000000\ny NaN\n'
    assert call("metrics", "Object.fromEntries(m.parse(arg))", text) | {"y": None} == {
        "x": 5.5,
        "tpuinfer:slots": 8,
        "y": None,
    }
    assert call("metrics", "m.reading('x 1', 0)") is None


def test_the_rate_is_between_two_readings(call):
    def rate(before, now):
        pair = [dict(zip(("generated", "at"), one, strict=True)) for one in (before, now)]
        return call("metrics", "m.rate(...arg)", pair)

    assert rate((100, 1000), (164, 3000)) == 32
    assert rate((100, 1000), (100, 1000)) is None
    assert rate((100, 1000), (5, 3000)) is None  # the server started anew
    assert call("metrics", "m.rate(null, {generated: 1, at: 1})") is None
    assert call("metrics", "[null, 0, 3.44, 127.6].map(m.shortRate)") == ["–", "0", "3.4", "128"]


def test_the_oldest_turns_go_when_there_is_no_room(call):
    kept = call(
        "memory",
        """((box) => {
          const storage = {setItem(_, text) { if (text.length > 300) throw 0; box.text = text; }};
          const content = "x".repeat(80);
          const turns = Array.from({length: 8}, (_, i) => ({role: "user", content: content + i}));
          const count = m.remember({turns, settings: {}, model: "a"}, storage);
          return [count, JSON.parse(box.text).turns.at(-1).content.at(-1), turns.length];
        })({})""",
    )
    assert kept == [2, "7", 8]
    assert call("memory", "m.remember({turns: []}, null)") == -1


def test_settings_are_sent_as_numbers_and_only_when_given(call):
    fields = "m.requestFields(arg)"
    assert call("settings", fields, {}) == {}
    typed = {"temperature": " 0 ", "top_k": "5", "seed": "", "system": "s", "extra": '{"a": 1}'}
    assert call("settings", fields, typed) == {"temperature": 0, "top_k": 5, "a": 1}
    assert call("settings", "m.changed(arg)", typed) == 4


@pytest.mark.parametrize("extra", ["{", "[1]", "null", '{"n": 2}', '{"stream": false}'])
def test_further_fields_must_be_an_object_of_what_is_not_the_page_s(call, extra):
    code = "(() => { try { m.requestFields({extra: arg}); } catch (e) { return e.message; } })()"
    assert call("settings", code, extra).startswith("Further fields: ")
