"""/v1/embeddings on a fake encoder, whose vectors are (number of tokens, their sum)."""

import asyncio
import base64
import json
import threading

import numpy as np
import openai
import pytest
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.errors import RequestError
from tpuinfer.server import encoding
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.encoding import EncoderThread
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.stream import while_wanted
from tpuinfer.testing.fake import FakeTokenizer


class FakeEmbedder:
    """Attributes: calls, how many texts each had; gate, shut while a call must wait."""

    limit = 16

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail = None

    def tokenise(self, texts, called):
        rows = [list(map(ord, text)) if isinstance(text, str) else list(text) for text in texts]
        for index, row in enumerate(rows):
            if len(row) > self.limit:
                raise RequestError(f"{called}[{index}] has {len(row)} tokens", param=called)
        return rows

    def stream(self, texts):
        assert self.gate.wait(5)
        if self.fail:
            raise self.fail
        rows = list(texts)
        self.calls.append(len(rows))
        for row in rows:
            yield np.array([len(row), sum(row)], np.float32)


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def served(embedder):
    bridge = Bridge(MODEL)
    bridge.attach_encoder(EncoderThread(embedder, width=2, max_waiting=400), FakeTokenizer())
    with TestClient(create_app(bridge, ServerInfo(MODEL))) as client:
        yield client


def embed(client, texts, **more):
    return client.post("/v1/embeddings", json={"model": MODEL, "input": texts} | more)


def vectors(reply):
    return [one["embedding"] for one in reply.json()["data"]]


@pytest.mark.parametrize(
    ("texts", "expected", "tokens"),
    [
        ("ab", [[2, 195]], 2),
        (["ab", "c"], [[2, 195], [1, 99]], 3),
        ([5, 6], [[2, 11]], 2),
        ([[5], [6, 7]], [[1, 5], [2, 13]], 3),
    ],
)
def test_what_input_may_be(served, texts, expected, tokens):
    reply = embed(served, texts)
    assert vectors(reply) == expected
    assert [one["index"] for one in reply.json()["data"]] == list(range(len(expected)))
    assert reply.json()["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_is_little_endian_float32(served):
    (text,) = vectors(embed(served, "ab", encoding_format="base64"))
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == [2, 195]


def test_openai_s_client(served):
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="x", http_client=served)
    reply = client.embeddings.create(model=MODEL, input=["ab", "c"])
    assert [one.embedding for one in reply.data] == [[2, 195], [1, 99]]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": "a" * 17}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 1025}, "input"),
        ({"dimensions": 1}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_what_is_refused(served, more, param):
    reply = served.post("/v1/embeddings", json={"model": MODEL, "input": "a"} | more)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert embed(served, "a", dimensions=2, user="me").status_code == 200


def test_an_encoder_refuses_chats_and_a_decoder_embeddings(served, client):
    for path, body in [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ]:
        reply = served.post(path, json={"model": MODEL} | body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_endpoint")
    reply = embed(client, "a")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_endpoint")
    assert served.get("/ready").status_code == 200


def test_requests_that_come_meanwhile_share_a_batch(served, embedder):
    embedder.gate.clear()
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(vectors(embed(served, ["a", "bb"]))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    deadline = threading.Event()
    deadline.wait(0.3)
    embedder.gate.set()
    for thread in threads:
        thread.join()
    assert replies == [[[1, 97], [2, 196]]] * 6
    assert sum(embedder.calls) == 12
    assert len(embedder.calls) <= 3


def test_a_queue_of_texts_that_is_full_is_a_503(served, embedder):
    embedder.gate.clear()
    first = threading.Thread(target=embed, args=(served, ["a"] * 300))
    first.start()
    threading.Event().wait(0.2)
    reply = embed(served, ["b"] * 200)
    embedder.gate.set()
    first.join()
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert sum(embedder.calls) == 300
    assert max(embedder.calls) <= 256


def test_an_encoder_that_fails_is_a_503_from_then_on(served, embedder):
    embedder.fail = RuntimeError("chip on fire")
    for _ in range(2):
        reply = embed(served, "a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
    assert "fire" not in json.dumps(reply.json())
    assert served.get("/health").status_code == 503


class RowsEmbedder(FakeEmbedder):
    """Attributes: seen, the rows of each call."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def stream(self, texts):
        rows = list(texts)
        self.seen.append(rows)
        return super().stream(rows)


def test_with_more_requests_than_texts_in_a_call_each_has_its_turn(monkeypatch):
    monkeypatch.setattr(encoding, "MOST_AT_ONCE", 2)
    embedder = RowsEmbedder()
    embedder.gate.clear()
    thread = EncoderThread(embedder, width=2)

    async def ask_all():
        first = asyncio.ensure_future(thread.embed([[9]]))
        while not embedder.seen:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(thread.embed([[n], [n]])) for n in range(4)]
        await asyncio.sleep(0)
        embedder.gate.set()
        return await asyncio.gather(first, *others)

    asyncio.run(ask_all())
    thread.stop()
    assert [[row[0] for row in rows] for rows in embedder.seen] == [
        [9],
        [0, 1],
        [2, 3],
        [0, 1],
        [2, 3],
    ]


def test_what_nobody_waits_for_is_not_encoded():
    embedder = RowsEmbedder()
    embedder.gate.clear()
    thread = EncoderThread(embedder, width=2)

    async def leave():
        first = asyncio.ensure_future(thread.embed([[9]]))
        while not embedder.seen:
            await asyncio.sleep(0.001)
        arrived = asyncio.Event()

        async def receive():
            await arrived.wait()
            return {"type": "http.disconnect"}

        leaving = asyncio.ensure_future(while_wanted(receive, thread.embed([[1], [2]])))
        await asyncio.sleep(0)
        arrived.set()
        assert await leaving is None
        embedder.gate.set()
        await first
        await thread.embed([[3]])

    asyncio.run(leave())
    thread.stop()
    assert embedder.seen == [[[9]], [[3]]]


def test_the_background_gives_way():
    """What comes while background texts are encoded is in the very next call."""
    embedder = RowsEmbedder()
    embedder.gate.clear()
    thread = EncoderThread(embedder, width=2, max_waiting=300)

    async def ask_all():
        behind = asyncio.ensure_future(thread.embed([[1]] * 200, background=True))
        while not embedder.seen:
            await asyncio.sleep(0.001)
        front = asyncio.ensure_future(thread.embed([[2]] * 250))
        await asyncio.sleep(0)
        embedder.gate.set()
        assert len(await front) == 250
        assert len(await behind) == 200

    asyncio.run(ask_all())
    thread.stop()
    assert [(rows[0][0], len(rows)) for rows in embedder.seen] == [
        (1, 64),
        (2, 250),
        (1, 64),
        (1, 64),
        (1, 8),
    ]
