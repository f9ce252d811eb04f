"""The chat page by clicking and typing."""

import json
import re

import pytest
from hands import answers, finished, say, seen, wait_until

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def requests_of(page):
    """A list that grows by the body of each chat request that the page sends."""
    bodies = []

    def note(request):
        if request.url.endswith("/v1/chat/completions"):
            bodies.append(json.loads(request.post_data))

    page.on("request", note)
    return bodies


def busy(page):
    """Wait until something of an answer is seen."""
    seen(page, "document.querySelector('li.assistant:last-child .text')?.textContent")
    assert page.get_by_role("button", name="Stop").is_visible()


def test_an_answer_streams_and_is_measured(page, server):
    server.runner.seconds = 0.05
    text = "hello " * 19 + "hello"
    say(page, text)
    busy(page)
    part = answers(page).locator(".text").inner_text()
    server.runner.seconds = 0.0
    (whole,) = finished(page)
    assert whole == text
    assert whole.startswith(part)
    assert part != whole
    stats = answers(page).locator(".stats").inner_text()
    assert re.match(r"TTFT \d+\.\d\d s · \d+\.\d tokens/s · \d+ prompt \+ 120 answer", stats)


def test_stop_frees_the_slot(page, server):
    server.runner.seconds = 0.02
    say(page, "on and on~")
    busy(page)
    assert server.running == 1
    page.get_by_role("button", name="Stop").click()
    (text,) = finished(page)
    assert text
    assert ("on and on~" * 400).startswith(text)
    assert "stopped" in answers(page).locator(".stats").inner_text()
    wait_until(lambda: server.running == 0)
    say(page, "next")
    assert finished(page, 2)[1] == "next"


def test_escape_stops_and_enter_waits_for_the_answer(page, server):
    server.runner.seconds = 0.02
    say(page, "on and on~")
    busy(page)
    say(page, "too early")
    assert page.get_by_label("Message", exact=True).input_value() == "too early"
    page.keyboard.press("Escape")
    finished(page, 1)
    wait_until(lambda: server.running == 0)


def test_shift_enter_is_a_new_line(page):
    bodies = requests_of(page)
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    assert finished(page) == ["one\ntwo"]
    assert bodies[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]


def test_tab_visits_everything_in_the_order_it_is_seen(page):
    page.locator("#model").focus()
    visited = []
    for _ in range(5):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or visited[-1] == "prompt"  # whose box is lit instead
    assert visited == ["new", "tune", "scroll", "prompt", "send"]


def test_only_what_was_set_is_sent_and_under_the_api_s_names(page):
    bodies = requests_of(page)
    say(page, "plain")
    finished(page)
    assert bodies[0].keys() == {"model", "messages", "stream", "stream_options"}
    page.get_by_role("button", name="Settings").click()
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7}
    given |= {"max_tokens": 3}
    for name, value in given.items():
        page.get_by_label(name, exact=True).fill(str(value))
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Further fields").fill('{"stop": ["zz"]}')
    page.get_by_role("button", name="Done").click()
    say(page, "plenty of words")
    assert finished(page, 2)[1] != ""
    sent = bodies[1]
    assert {name: sent[name] for name in given} == given
    assert sent["stop"] == ["zz"]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    stats = answers(page).last.locator(".stats").inner_text()
    assert "3 answer tokens" in stats
    assert "cut at max_tokens" in stats
    assert page.get_by_role("button", name="Settings (8)").is_visible()


def test_a_setting_that_cannot_be_sent_keeps_the_dialog_open(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Further fields").fill("{stop}")
    page.get_by_role("button", name="Done").click()
    assert page.locator("#settings").is_visible()
    page.get_by_label("Further fields").fill('{"stream": false}')
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_visible()
    page.get_by_role("button", name="Clear all fields").click()
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()


def test_a_refused_request_is_one_line_and_can_be_tried_again(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Further fields").fill('{"bananas": 3}')
    page.keyboard.press("Escape")
    say(page, "hi")
    finished(page)
    assert "bananas" in answers(page).get_by_role("alert").inner_text()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Clear all fields").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Retry").click()
    assert finished(page) == ["hi"]


def test_a_reload_keeps_the_conversation_and_the_settings(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("temperature").fill("0.25")
    page.keyboard.press("Escape")
    say(page, "remember")
    finished(page)
    bodies = requests_of(page)
    page.reload()
    assert finished(page) == ["remember"]
    assert "answer tokens" in answers(page).locator(".stats").inner_text()
    say(page, "more")
    assert finished(page, 2) == ["remember", "more"]
    assert [one["content"] for one in bodies[0]["messages"]] == ["remember", "remember", "more"]
    assert bodies[0]["temperature"] == 0.25


def test_a_new_chat_forgets_even_an_answer_on_its_way(page, server):
    server.runner.seconds = 0.02
    say(page, "on and on~")
    busy(page)
    page.get_by_role("button", name="New chat").click()
    wait_until(lambda: server.running == 0)
    assert page.get_by_text("What would you like to know?").is_visible()
    bodies = requests_of(page)
    say(page, "fresh")
    assert finished(page) == ["fresh"]
    assert len(bodies[0]["messages"]) == 1


def test_edit_and_send_again_drops_what_came_after(page):
    for count, text in enumerate(("first", "second"), 1):
        say(page, text)
        finished(page, count)
    bodies = requests_of(page)
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit message").fill("changed")
    page.keyboard.press("Escape")
    assert page.locator("li.user .text").first.inner_text() == "first"
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit message").fill("changed")
    page.keyboard.press("Enter")
    assert finished(page) == ["changed"]
    assert bodies[-1]["messages"] == [{"role": "user", "content": "changed"}]


def test_regenerate_asks_the_same_again(page):
    say(page, "again")
    finished(page)
    bodies = requests_of(page)
    page.get_by_role("button", name="Regenerate").click()
    assert finished(page) == ["again"]
    assert bodies[-1]["messages"] == [{"role": "user", "content": "again"}]


def test_markup_in_an_answer_is_text(page):
    text = "<script>document.title = 'gone'</script> <img src=x onerror=alert(1)> **<b>bold</b>**"
    say(page, text)
    assert finished(page) == [text.replace("**", "")]
    assert answers(page).locator("strong").inner_text() == "<b>bold</b>"
    assert answers(page).locator("script, img, b").count() == 0
    assert page.title() == "tpuinfer"


def test_the_load_is_shown_live(page, server):
    seen(page, "document.querySelector('#running').value === '0/4'")
    server.runner.seconds = 0.02
    say(page, "on and on~")
    seen(page, "document.querySelector('#running').value === '1/4'")
    seen(page, "Number(document.querySelector('#rate').value) > 1")
    page.keyboard.press("Escape")
    seen(page, "document.querySelector('#running').value === '0/4'")


def test_a_phone_has_no_sideways_scrolling_and_large_targets(visit, server):
    page = visit(server.url, **PHONE)
    say(page, "x" * 300 + "\n```\n" + "y" * 300 + "\n```")
    finished(page)
    width = "(e) => e.scrollWidth <= e.clientWidth"
    assert page.locator("html").evaluate(width)
    assert page.locator("main").evaluate(width)
    page.get_by_role("button", name="Settings").click()
    assert page.locator("#settings").evaluate(width)
    for button in page.locator("button:visible, select:visible, input:visible").all():
        assert button.bounding_box()["height"] >= 44, button.inner_text()


def test_nothing_moves_while_an_answer_comes(page, server):
    def boxes():
        return [page.locator(one).bounding_box() for one in ("header", ".box", "#live", "main")]

    seen(page, "document.querySelector('#running').value === '0/4'")
    before = boxes()
    server.runner.seconds = 0.02
    say(page, "on and on~")
    busy(page)
    assert boxes() == before
    page.keyboard.press("Escape")
    finished(page)
    assert boxes() == before
