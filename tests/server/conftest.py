"""The server on the fake engine: "abc" is answered "defg...", and a chat's answer is ";<=>?@AB..."

because the fake chat template ends with "assistant:".
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from served import MODEL, fake_engine
from starlette.testclient import TestClient
from wired import Wired

from tpuinfer.engine.engine import Engine
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.testing.fake import FakeTokenizer

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def engine() -> Engine:
    return fake_engine()


@pytest.fixture
def bridge(engine: Engine) -> Iterator[Bridge]:
    bridge = Bridge(MODEL)
    bridge.attach(engine, FakeTokenizer())
    yield bridge
    bridge.stop()


@pytest.fixture
def client(bridge: Bridge) -> Iterator[TestClient]:
    with TestClient(create_app(bridge, ServerInfo(MODEL, aliases=("alias",)))) as client:
        yield client


@pytest.fixture
def chat(client: TestClient) -> Callable[..., Any]:
    """POST a chat of one message."""

    def post(content: Any = "hi", **fields: Any) -> Any:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields
        return client.post("/v1/chat/completions", content=json.dumps(body), headers=JSON)

    return post


@pytest.fixture
def complete(client: TestClient) -> Callable[..., Any]:
    """POST a completion, greedy unless told otherwise."""

    def post(prompt: Any = "abc", **fields: Any) -> Any:
        body = {"model": MODEL, "prompt": prompt, "temperature": 0} | fields
        return client.post("/v1/completions", content=json.dumps(body), headers=JSON)

    return post


@pytest.fixture
def uvicorn_server(bridge: Bridge) -> Iterator[Wired]:
    wired = Wired(create_app(bridge, ServerInfo(MODEL)))
    yield wired
    wired.stop()
