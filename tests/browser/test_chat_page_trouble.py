"""The chat page when something is in its way: no key, no room, no storage, a broken stream."""

import json

import pytest
from echo_server import MODEL, echo_server
from hands import answers, finished, say, seen

pytestmark = pytest.mark.browser

CHAT = "**/v1/chat/completions"
KEY = "open sesame"


def error_body(message):
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": None}})


def events(*chunks):
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def answer_with(page, body):
    """The next chat request gets these events instead of the server's."""
    headers = {"Content-Type": "text/event-stream"}
    page.route(CHAT, lambda route: route.fulfill(headers=headers, body=body), times=1)


def test_a_key_is_asked_for_and_kept_for_the_tab(visit):
    with echo_server(keys=[KEY]) as server:
        page = visit(server.url)
        for key in ("wrong key", KEY):
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
        seen(page, "document.querySelector('#model').value === 'echo'")
        seen(page, "document.querySelector('#running').value === '0/4'")
        say(page, "hi")
        assert finished(page) == ["hi"]
        page.reload()
        seen(page, "document.querySelector('#model').value === 'echo'")
        assert page.locator("#access").is_hidden()
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")
        page.context.close()


def test_a_key_that_expires_is_asked_for_in_mid_conversation(page):
    body = error_body("the API key is wrong")
    page.route(CHAT, lambda route: route.fulfill(status=401, body=body), times=2)
    say(page, "hi")
    page.get_by_label("Key", exact=True).fill("new")
    page.get_by_role("button", name="Use key").click()
    seen(page, "document.querySelector('#access').open")
    page.get_by_role("button", name="Cancel").click()
    finished(page)
    assert answers(page).get_by_role("alert").inner_text() == "The API key is wrong."
    page.get_by_role("button", name="Retry").click()
    assert finished(page) == ["hi"]


def test_a_server_that_loads_is_waited_for(visit):
    with echo_server(loaded=False) as server:
        page = visit(server.url)
        status = page.get_by_role("status")
        status.get_by_text(f"{MODEL.capitalize()} is still loading. Waiting for it.").wait_for()
        server.load()
        seen(page, "document.querySelector('#status').textContent === ''")
        say(page, "hi")
        assert finished(page) == ["hi"]
        page.context.close()


def test_a_full_queue_is_tried_again_after_as_long_as_it_says(page):
    headers = {"Retry-After": "1", "Content-Type": "application/json"}
    refusal = {"status": 503, "headers": headers, "body": error_body("the queue is full")}
    page.route(CHAT, lambda route: route.fulfill(**refusal), times=1)
    say(page, "hi")
    page.get_by_role("status").get_by_text("The queue is full. Trying again in 1 s.").wait_for()
    assert finished(page) == ["hi"]


def test_waiting_for_the_server_can_be_stopped(page):
    refusal = {"status": 503, "headers": {"Retry-After": "60"}, "body": error_body("full")}
    page.route(CHAT, lambda route: route.fulfill(**refusal))
    say(page, "hi")
    page.get_by_role("status").get_by_text("Trying again in 60 s.").wait_for()
    page.keyboard.press("Escape")
    assert finished(page) == [""]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (events(chunk(content="half"), {"error": {"message": "it\nbroke"}}), "It broke."),
        (events(chunk(content="half")), "The connection ended before the answer did."),
        (events(chunk(content="half")) + "data: {\n\n", "The server sent what is no JSON."),
    ],
)
def test_a_stream_that_breaks_keeps_what_came(page, body, words):
    answer_with(page, body)
    say(page, "hi")
    assert finished(page) == ["half"]
    assert answers(page).get_by_role("alert").inner_text() == words
    page.get_by_role("button", name="Retry").click()
    assert finished(page) == ["hi"]


def test_a_server_that_is_gone_is_said_in_words(page):
    page.route(CHAT, lambda route: route.abort(), times=1)
    say(page, "hi")
    finished(page)
    assert answers(page).get_by_role("alert").inner_text() == "The server cannot be reached."


def test_reasoning_is_folded_and_not_sent_back(page):
    answer_with(
        page,
        events(chunk(reasoning_content="Hmm, "), chunk(reasoning_content="<b>"), chunk(content="4"))
        + events(chunk("stop"))
        + "data: [DONE]\n\n",
    )
    say(page, "2+2")
    assert finished(page) == ["4"]
    thought = page.get_by_text("Hmm, <b>")
    assert thought.is_hidden()
    page.get_by_text("Reasoning").click()
    assert thought.is_visible()
    sent = []
    page.on("request", lambda request: sent.append(request.post_data or ""))
    say(page, "sure?")
    finished(page, 2)
    assert any("sure?" in body for body in sent)
    assert not any("Hmm" in body for body in sent)


def test_tool_calls_are_shown_as_json(page):
    first = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": text}} for text in ('{"city":', '"Oslo"}')]
    other = {"index": 1, "id": "call_2", "function": {"name": "time", "arguments": "{}"}}
    calls = [chunk(tool_calls=[one]) for one in (first, *pieces, other)]
    answer_with(page, events(*calls, chunk("tool_calls")) + "data: [DONE]\n\n")
    say(page, "weather?")
    finished(page)
    shown = page.locator(".calls").inner_text()
    assert [json.loads(one) for one in shown.replace("}\n{", "}\0{").split("\0")] == [
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"name": "time", "arguments": {}},
    ]


@pytest.mark.parametrize(
    "storage",
    [
        "Storage.prototype.setItem = () => { throw new DOMException('full') }",
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})",
        "localStorage.setItem('tpuinfer.chat', '{')",
        """localStorage.setItem('tpuinfer.chat', JSON.stringify(
             {turns: [{role: 'assistant', content: 'x', stats: {ttft: 'y'}}], settings: {top_p: 1},
              model: 5}))""",
    ],
    ids=["full", "forbidden", "broken", "foreign"],
)
def test_the_page_works_whatever_is_stored(page, storage):
    page.add_init_script(storage)
    page.reload()
    say(page, "hi")
    assert finished(page) == ["hi"]
