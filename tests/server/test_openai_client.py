"""The real openai client against a real server on a loopback port, the engine being the fake."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from served import MODEL, fake_engine

from tpuinfer.engine.engine import Engine
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import bind, serve
from tpuinfer.testing.fake import FakeTokenizer

MESSAGES = [{"role": "user", "content": "hi"}]


class _OverError(Exception):
    """Ends `serve` when the tests are over."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return fake_engine(slots=8, capacity=4096)


@pytest.fixture(scope="module")
def client(engine) -> Iterator[openai.OpenAI]:
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    over = threading.Event()
    bridge = Bridge(MODEL)

    def hold() -> None:
        bridge.attach(engine, FakeTokenizer())
        over.wait(60)
        raise _OverError

    def run() -> None:
        with pytest.raises(_OverError):
            serve(create_app(bridge, ServerInfo(MODEL)), listener, "warning", hold)

    thread = threading.Thread(target=run)
    thread.start()
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client
    over.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _wait_until_ready(client) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            client.completions.create(model=MODEL, prompt="a", max_tokens=1)
        except openai.InternalServerError:
            time.sleep(0.01)
        else:
            return
    pytest.fail("the server did not become ready")


def until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_chat(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=3, temperature=0, logprobs=True
    )
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == (";<=", "length")
    assert [one.token for one in choice.logprobs.content] == [";", "<", "="]
    assert [one.bytes for one in choice.logprobs.content] == [[59], [60], [61]]
    assert reply.usage.total_tokens == 21


def test_chat_streamed(client):
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=3,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert (text, chunks[-2].choices[0].finish_reason) == (";<=", "length")
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)


def test_the_clients_own_stream_helper(client):
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stop="?", temperature=0
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ";<=>"


def test_completions(client):
    reply = client.completions.create(
        model=MODEL, prompt=["abc", "123"], max_tokens=2, temperature=0, logprobs=0
    )
    assert [choice.text for choice in reply.choices] == ["de", "45"]
    assert reply.choices[1].logprobs.tokens == ["4", "5"]
    assert reply.choices[1].logprobs.text_offset == [0, 1]
    stream = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == "defg"


def test_extra_parameters(client):
    reply = client.completions.create(
        model=MODEL,
        prompt="abc",
        extra_body={"top_k": 1, "min_p": 0.5, "stop_token_ids": [102], "ignore_eos": True},
        temperature=0,
    )
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("de", "stop")


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, n=129)
    assert (refused.value.param, refused.value.code) == ("n", "invalid_value")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-4", prompt="a")
    assert missing.value.code == "model_not_found"


def test_sixteen_at_once_on_eight_slots(client, engine):
    def ask(number: int) -> str:
        stream = client.completions.create(
            model=MODEL,
            prompt=chr(65 + number),
            max_tokens=20,
            temperature=0,
            stream=number % 2 == 0,
        )
        if number % 2:
            return stream.choices[0].text
        return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(16)))
    assert texts == ["".join(chr(66 + number + i) for i in range(20)) for number in range(16)]
    until(lambda: engine.metrics.running == 0)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(client, engine, monkeypatch, streamed):
    monkeypatch.setattr(engine.runner, "seconds", 0.002)
    aborted = engine.metrics.finished["abort"]
    endless = {"model": MODEL, "prompt": "abc", "max_tokens": 4000, "temperature": 0}
    endless["extra_body"] = {"ignore_eos": True}
    if streamed:
        stream = client.completions.create(stream=True, **endless)
        next(iter(stream))
        assert engine.metrics.running == 1
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(timeout=0.2, **endless)
    until(lambda: engine.metrics.finished["abort"] == aborted + 1)
    until(lambda: not engine.has_work)
    assert engine.metrics.running == 0
