"""The desk gives HTTP's own answers to the lines of a batch, and has patience."""

import asyncio
import json
import logging

import pytest
from served import MODEL, Gate, fake_engine
from starlette.testclient import TestClient
from test_bridge import until
from test_embeddings import FakeEmbedder
from test_openai_tools import TOOLS, HermesTokenizer

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Delta, Request, SamplingParams
from tpuinfer.engine.scheduler import QueueFullError
from tpuinfer.offline.task import LineError, Stamp, stamp
from tpuinfer.server import desk as desk_module
from tpuinfer.server import guides, trail
from tpuinfer.server.app import create_app
from tpuinfer.server.audit import Audit
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.desk import Desk
from tpuinfer.server.encoding import EncoderThread
from tpuinfer.server.failures import EngineDeadError, NotReadyError
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.receive import MAX_BODY_BYTES, MAX_DEPTH
from tpuinfer.server.speech import Speech
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
JSON = {"Content-Type": "application/json"}
STAMP = Stamp("0" * 31 + "1", 5, 86_400)
MESSAGES = [{"role": "user", "content": "hi"}]
FACTS = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"enum": ["ab", "cd"]}}}


def chat(**fields):
    return CHAT, {"model": MODEL, "messages": MESSAGES, "max_tokens": 4} | fields


def completion(prompt="abc", **fields):
    return COMPLETION, {"model": MODEL, "prompt": prompt, "max_tokens": 4} | fields


def desk_of(bridge, **settings):
    info = ServerInfo(MODEL, aliases=("alias",))
    return Desk(bridge, info, Speech(bridge), **{"background": True} | settings)


def bytes_of(body):
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def ask(bridge, url, body, mark=STAMP, **settings):
    """The outcome of one line, on a loop of its own."""
    return asyncio.run(desk_of(bridge, **settings).answer(url, bytes_of(body), mark))


def said(outcome):
    assert outcome.ok, outcome.body
    choices = json.loads(outcome.body)["choices"]
    return [one["text"] if "text" in one else one["message"]["content"] for one in choices]


@pytest.fixture
def tooled():
    tokenizer = HermesTokenizer()
    bridge = Bridge(MODEL)
    bridge.attach(Engine(FakeRunner(slots=4, capacity=512), tokenizer), tokenizer)
    yield bridge
    bridge.stop()


@pytest.fixture
def encoder():
    embedder, bridge = FakeEmbedder(), Bridge(MODEL)
    bridge.attach_encoder(EncoderThread(embedder, width=2, max_waiting=400), FakeTokenizer())
    yield bridge, embedder
    bridge.stop()


def without_names(reply):
    """An answer without what no two have in common."""
    answer = json.loads(reply)
    del answer["id"], answer["created"]
    for choice in answer["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            del call["id"]
    return answer


GOOD = [
    chat(temperature=0),
    chat(n=3, seed=1, stop="="),
    chat(seed=1, logprobs=True, top_logprobs=2),
    chat(response_format=FACTS, max_tokens=None),
    chat(temperature=0, tools=TOOLS, tool_choice="required", n=2, max_tokens=None),
    chat(temperature=0, tools=TOOLS),
    completion([[97, 98, 99], [49, 50]], n=2, seed=0),
    completion(logprobs=2, echo=True, seed=3),
    completion(echo=True, logprobs=1, max_tokens=0),
]


@pytest.mark.parametrize(("url", "body"), GOOD)
def test_answers_are_those_of_http(tooled, url, body):
    with TestClient(create_app(tooled, ServerInfo(MODEL))) as client:
        over_http = client.post(url, content=json.dumps(body), headers=JSON)
        outcome = ask(tooled, url, body)
    assert over_http.status_code == outcome.status == 200, (over_http.text, outcome.body)
    assert without_names(outcome.body) == without_names(over_http.content)
    usage = json.loads(outcome.body)["usage"]
    assert usage["prompt_tokens"] == outcome.prompt_tokens > 0
    assert usage["completion_tokens"] == outcome.completion_tokens


BAD = [
    (CHAT, b""),
    (CHAT, b"{"),
    (CHAT, b"[]"),
    (CHAT, b"null"),
    (CHAT, b"\xff"),
    (CHAT, b"[" * (MAX_DEPTH + 1)),
    (CHAT, b'{"a":' + b"[1," * 9 + b"1" * 20_000),
    (CHAT, b" " * MAX_BODY_BYTES + b"{}"),
    (CHAT, {"messages": MESSAGES}),
    (CHAT, {"model": MODEL}),
    chat(model="other"),
    chat(model=5),
    chat(messages=[]),
    chat(messages=[{"role": "nobody", "content": "x"}]),
    chat(messages=[{"role": "user", "content": "x" * 400}]),
    chat(messages=[{"role": "user", "content": "\ud800"}]),
    chat(temperature=-1),
    chat(n=0),
    chat(max_tokens=5, max_completion_tokens=6),
    chat(max_tokens=60),
    chat(top_logprobs=2),
    chat(stream_options={"include_usage": True}),
    chat(tool_choice="required"),
    chat(best_of=2),
    chat(chat_template_kwargs={"strftime_now": "then"}),
    chat(
        response_format={"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": 5}}}
    ),
    completion(prompt=[]),
    completion(prompt=[5000]),
    completion(max_tokens=0),
    completion(stop=["x"] * 17),
    completion(logit_bias={"x": 1}),
    completion(guided_regex="("),
    completion(min_tokens=9),
    completion(unknown=True),
    (EMBEDDING, {"model": MODEL, "input": "a"}),
    (EMBEDDING, {"model": MODEL, "input": []}),
    (EMBEDDING, b"x" * 40_000),
]


def test_bad_lines_get_the_error_of_http_byte_for_byte(client, bridge):
    for url, body in BAD:
        over_http = client.post(url, content=bytes_of(body), headers=JSON)
        outcome = ask(bridge, url, body)
        assert over_http.status_code >= 400, (url, over_http.text)
        assert (outcome.status, outcome.body) == (over_http.status_code, over_http.content)


@pytest.mark.parametrize("body", [{"input": "a" * 17}, {"input": "a", "dimensions": 3}])
def test_bad_texts_get_the_error_of_http(encoder, body):
    bridge, _ = encoder
    body = {"model": MODEL} | body
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        over_http = client.post(EMBEDDING, content=json.dumps(body), headers=JSON)
        outcome = ask(bridge, EMBEDDING, body)
    assert (outcome.status, outcome.body) == (400, over_http.content)


@pytest.mark.parametrize(
    ("url", "body", "param", "code"),
    [
        (*chat(stream=True), "stream", "unsupported_value"),
        (*completion(stream=True, stream_options={}), "stream", "unsupported_value"),
        ("/v1/models", {}, "url", "invalid_url"),
    ],
)
def test_what_only_a_batch_refuses(bridge, url, body, param, code):
    outcome = ask(bridge, url, body)
    error = json.loads(outcome.body)["error"]
    assert (outcome.status, error["param"], error["code"]) == (400, param, code)


def test_a_line_that_is_no_request(bridge):
    error = LineError("custom_id is 5: it must be a string", code="invalid_type", param="custom_id")
    outcome = desk_of(bridge).refuse(error)
    assert outcome.status == 400
    assert json.loads(outcome.body) == {
        "error": {
            "message": "custom_id is 5: it must be a string",
            "type": "invalid_request_error",
            "param": "custom_id",
            "code": "invalid_type",
        }
    }


def everything():
    """What a batch of all kinds is answered with, on an engine of its own, in any order."""
    tokenizer, bridge = HermesTokenizer(), Bridge(MODEL)
    bridge.attach(Engine(FakeRunner(slots=4, capacity=512), tokenizer), tokenizer)
    desk = desk_of(bridge)

    async def scenario():
        lines = [
            desk.answer(url, bytes_of(body), stamp(f"row-{row}", seed=3, created=7))
            for row, (url, body) in enumerate(
                [
                    chat(n=2, max_tokens=20),
                    completion(["abc", "de"], n=2, logprobs=1),
                    chat(tools=TOOLS, tool_choice="required", max_tokens=None, n=2),
                    chat(),
                ]
            )
        ]
        return [outcome.body for outcome in await asyncio.gather(*lines)]

    try:
        return asyncio.run(scenario())
    finally:
        bridge.stop()


def test_two_runs_are_equal_bit_for_bit():
    first, second = everything(), everything()
    assert first == second
    called = [one["message"]["tool_calls"] for one in json.loads(first[2])["choices"]]
    names = [call["id"] for calls in called for call in calls]
    assert len(set(names)) == len(names) >= 2
    assert json.loads(first[0])["choices"][0] != json.loads(first[3])["choices"][0]


def test_what_a_stamp_does(bridge):
    url, body = completion()
    reply = json.loads(ask(bridge, url, body).body)
    assert (reply["id"], reply["created"]) == (f"cmpl-{STAMP.name}", 86_400)
    assert reply["choices"][0]["text"] == "iou{"  # in steps of one and the seed of the stamp
    assert said(ask(bridge, url, body | {"seed": 1})) == ["egik"]
    assert json.loads(ask(bridge, *chat()).body)["id"] == f"chatcmpl-{STAMP.name}"


class DatedTokenizer(FakeTokenizer):
    def apply_chat_template(self, messages, *, strftime_now, **extra):
        return super().apply_chat_template(messages, **extra) + strftime_now("%Y-%m-%d")


def test_a_template_that_writes_the_date_writes_that_of_the_batch():
    bridge = Bridge(MODEL)
    bridge.attach(fake_engine(), DatedTokenizer())
    notes = []
    assert ask(bridge, *chat(), notes=[notes.append]).ok
    bridge.stop()
    assert "".join(map(chr, notes[0].prompts[0])).endswith("1970-01-02")


def test_embeddings(encoder):
    bridge, _ = encoder

    async def scenario(desk):
        bodies = [{"model": MODEL, "input": ["ab", "c" * size]} for size in (1, 2)]
        lines = (desk.answer(EMBEDDING, bytes_of(body), STAMP) for body in bodies)
        return await asyncio.gather(*lines)

    desk = desk_of(bridge)
    assert desk.width == 512
    one, two = asyncio.run(scenario(desk))
    assert (one.status, one.prompt_tokens, two.prompt_tokens) == (200, 3, 4)
    reply = json.loads(two.body)
    assert [each["embedding"] for each in reply["data"]] == [[2, 195], [2, 198]]
    assert asyncio.run(scenario(desk)) == [one, two]
    assert json.loads(ask(bridge, *chat()).body)["error"]["code"] == "unsupported_endpoint"


def test_a_full_queue_of_texts_is_waited_for(encoder, monkeypatch):
    monkeypatch.setattr(desk_module, "_FIRST_PAUSE", 0.001)
    bridge, embedder = encoder
    embedder.gate.clear()
    body = bytes_of({"model": MODEL, "input": ["a"] * 300})

    async def scenario():
        desk = desk_of(bridge)
        lines = [asyncio.ensure_future(desk.answer(EMBEDDING, body, STAMP)) for _ in range(3)]
        await asyncio.sleep(0.05)
        embedder.gate.set()
        return await asyncio.gather(*lines)

    assert all(outcome.ok for outcome in asyncio.run(scenario()))


class Taker:
    """In the way of an engine: ends requests with something of theirs in the id, when they begin.

    Attributes:
      ends: a part of an id -> with what such requests end, one delta for each time.
      seen: the requests that the engine was given.
    """

    def __init__(self, engine, ends):
        self.ends = {part: list(deltas) for part, deltas in ends.items()}
        self.seen = []
        self._engine, self._step, self._add = engine, engine.step, engine.add
        engine.step, engine.add = self.step, self.add

    def add(self, request):
        self.seen.append(request)
        self._add(request)

    def step(self):
        deltas = self._step()
        for index, delta in enumerate(deltas):
            for part, ends in self.ends.items():
                if delta.token_ids and ends and part in delta.request_id:
                    if delta.finish_reason is None:
                        self._engine.abort(delta.request_id)
                    deltas[index] = Delta(delta.request_id, **ends.pop())
        return deltas


TAKEN = {"finish_reason": "preempted"}


@pytest.mark.parametrize(
    ("url", "body"),
    [
        completion(["abc", "xy"], n=2, max_tokens=20, logprobs=1),
        completion(n=2, max_tokens=None, guided_regex="[a-f]{6}"),
    ],
    ids=["plain", "guided"],
)
def test_what_was_preempted_is_asked_again_and_nobody_sees_it(engine, bridge, url, body):
    undisturbed = ask(bridge, url, body)
    taker = Taker(engine, {f"{STAMP.name}-1": [TAKEN] * 3})
    notes = []
    assert ask(bridge, url, body, notes=[notes.append]) == undisturbed
    assert len(taker.seen) == len(said(undisturbed)) + 3
    again = [one for one in taker.seen if f"{STAMP.name}-1" in one.request_id]
    assert len({one.request_id for one in again}) == 4
    if again[0].constraint is not None:
        assert len({id(one.constraint) for one in again}) == 4
    assert "preempted" not in notes[0].finish_reasons
    assert notes[0].completion_tokens == undisturbed.completion_tokens


def test_lines_give_way_to_those_who_wait_and_lose_nothing(engine, bridge):
    lines = [completion(chr(65 + row), temperature=0, max_tokens=30) for row in range(6)]
    marks = [stamp(f"row-{row}", seed=0, created=1) for row in range(6)]
    alone = [ask(bridge, *line, mark) for line, mark in zip(lines, marks, strict=True)]
    engine.runner.seconds = 0.002
    gate = Gate(engine)

    async def scenario():
        desk = desk_of(bridge)
        work = [
            asyncio.ensure_future(desk.answer(url, bytes_of(body), mark))
            for (url, body), mark in zip(lines, marks, strict=True)
        ]
        await until(lambda: engine.metrics.running == 4 and gate.steps > 3)
        params = SamplingParams(temperature=0, max_tokens=2)
        wanted = [Request(f"now-{n}", [97], params) for n in range(4)]
        answers = await bridge.submit(wanted)
        got = [delta async for deltas in answers for delta in deltas]
        return got, await asyncio.gather(*work)

    got, outcomes = asyncio.run(scenario())
    assert "".join(delta.text for delta in got if delta.request_id == "now-0") == "bc"
    assert engine.metrics.finished["preempted"] > 0
    assert outcomes == alone


def test_of_two_choices_that_fail_the_first_one_is_named(engine, bridge):
    ends = {
        f"{STAMP.name}-{choice}": [{"finish_reason": "error", "error": f"choice {choice} failed"}]
        for choice in range(2)
    }
    engine.runner.seconds = 0.002
    step = Taker(engine, ends).step
    steps: list[list[Delta]] = []

    def first_choice_last():
        """Its deltas come five steps late; the third choice keeps the engine busy meanwhile."""
        steps.append(step())
        late = steps[-6] if len(steps) > 5 else []
        return [one for one in late if one.request_id.endswith("-0")] + [
            one for one in steps[-1] if not one.request_id.endswith("-0")
        ]

    engine.step = first_choice_last
    outcome = ask(bridge, *completion(n=3, temperature=0, max_tokens=20))
    assert json.loads(outcome.body)["error"]["message"] == "choice 0 failed"
    assert (outcome.status, outcome.transient) == (500, False)


def test_a_cancelled_line_frees_its_slots(engine, bridge):
    engine.runner.seconds = 0.002
    gate = Gate(engine)
    notes = []

    async def scenario():
        desk = desk_of(bridge, notes=[notes.append])
        url, body = completion(n=3, max_tokens=60, temperature=0, ignore_eos=True)
        line = asyncio.ensure_future(desk.answer(url, bytes_of(body), STAMP))
        await until(lambda: engine.metrics.running == 3)
        gate.shut()
        line.cancel()
        with pytest.raises(asyncio.CancelledError):
            await line
        assert bridge.idle
        gate.open()
        await until(lambda: engine.metrics.running == 0)
        assert (await desk.answer(url, bytes_of(body | {"n": 4, "max_tokens": 2}), STAMP)).ok

    asyncio.run(scenario())
    assert engine.metrics.finished["abort"] == 3
    assert [trail.status for trail in notes] == [499, 200]


def test_a_cancelled_line_of_texts_is_not_encoded(encoder):
    bridge, embedder = encoder
    embedder.gate.clear()

    async def scenario():
        desk = desk_of(bridge)
        body = bytes_of({"model": MODEL, "input": ["a", "b"]})
        first, second = (
            asyncio.ensure_future(desk.answer(EMBEDDING, body, STAMP)) for _ in range(2)
        )
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        embedder.gate.set()
        assert (await first).ok
        await until(lambda: bridge.idle)

    asyncio.run(scenario())
    assert sum(embedder.calls) <= 4


def test_a_line_of_many_prompts_does_not_fill_the_queue():
    bridge, engine = Bridge(MODEL), fake_engine(slots=2, max_waiting=100)
    bridge.attach(engine, FakeTokenizer())
    most = []
    step = engine.step
    engine.step = lambda: (most.append(engine.metrics.running + engine.metrics.waiting), step())[1]
    prompts = [chr(65 + number) for number in range(40)]
    outcome = ask(bridge, *completion(prompts, temperature=0, max_tokens=1))
    assert desk_of(bridge).width == 4
    bridge.stop()
    assert said(outcome) == [chr(66 + number) for number in range(40)]
    assert max(most) <= 4


@pytest.mark.parametrize("what", ["engine", "grammars"])
def test_a_full_queue_is_waited_for(engine, bridge, monkeypatch, what):
    pauses, sleep, add = [], asyncio.sleep, engine.add

    async def paused(seconds):
        pauses.append(seconds)
        monkeypatch.setattr(guides, "_MOST_WAITING", int(len(pauses) == 9))
        await sleep(0)

    def refuse(request):
        if len(pauses) < 9:
            raise QueueFullError("5 are waiting")
        add(request)

    monkeypatch.setattr(asyncio, "sleep", paused)
    if what == "engine":
        monkeypatch.setattr(engine, "add", refuse)
    else:
        monkeypatch.setattr(guides, "_MOST_WAITING", 0)
    outcome = ask(bridge, *completion(guided_regex="ab", max_tokens=None))
    assert said(outcome) == ["ab"]
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]


def test_without_an_engine_nothing_is_answered():
    bridge = Bridge(MODEL)
    notes = []
    with pytest.raises(NotReadyError, match="loading"):
        ask(bridge, *chat(), notes=[notes.append])
    with pytest.raises(NotReadyError, match="loading"):
        _ = desk_of(bridge).width
    assert [(one.status, one.error) for one in notes] == [(503, "not_ready")]


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize(("end", "error"), [("die", EngineDeadError), ("stop", NotReadyError)])
def test_an_engine_that_ends_in_the_middle_ends_the_run(engine, bridge, choices, end, error):
    engine.runner.seconds = 0.002
    gate = Gate(engine)

    async def scenario():
        url, body = completion(n=choices, max_tokens=60, ignore_eos=True)
        line = asyncio.ensure_future(desk_of(bridge).answer(url, bytes_of(body), STAMP))
        await until(lambda: gate.steps > 1)
        if end == "die":
            gate.fail = RuntimeError("chip on fire")
        else:
            await asyncio.to_thread(bridge.stop)
        with pytest.raises(error):
            await line

    asyncio.run(scenario())


def test_what_nobody_foresaw_is_logged_and_shows_no_detail(bridge, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ValueError("secret")

    monkeypatch.setattr(bridge.tokenizer, "encode_chat", fail)
    with caplog.at_level(logging.ERROR):
        outcome = ask(bridge, *chat())
    assert (outcome.status, outcome.transient) == (500, False)
    assert json.loads(outcome.body)["error"]["code"] == "internal_error"
    assert STAMP.name in caplog.text
    assert "secret" in caplog.text


def test_lines_are_noted_as_requests_are(bridge, tmp_path):
    audit = Audit(tmp_path / "audit.jsonl", lambda ids: "".join(map(chr, ids)))
    trails = []
    settings = {"notes": [audit, trails.append], "key": "sha256:abc"}
    ask(bridge, *completion(["abc", "de"], n=2), **settings)
    ask(bridge, *completion(n=0), **settings)
    audit.close()
    [line] = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    del line["time"]
    assert line == {
        "request_id": STAMP.name,
        "key": "sha256:abc",
        "route": "/v1/completions (batch)",
        "status": 200,
        "model": MODEL,
        "version": 0,
        "prompt_tokens": 5,
        "completion_tokens": 16,
        "finish_reasons": ["length"] * 4,
        "prompts": ["abc", "de"],
    }
    assert [(one.status, one.error) for one in trails] == [(200, None), (400, "invalid_value")]
    assert all(one.seconds > 0 for one in trails)


def test_a_line_s_trail_is_not_that_of_whoever_asks(bridge):
    async def scenario():
        mine = trail.Trail("mine", "POST", "/v1/batches")
        trail.begin(mine)
        await desk_of(bridge).answer(CHAT, bytes_of(chat()[1]), STAMP)
        assert trail.current() is mine
        assert mine.model is None

    asyncio.run(scenario())
