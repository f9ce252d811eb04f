"""A server with batches on the fake engine, for tests: "abc" is answered "defg..."."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from openai.types import Batch as OpenAIBatch
from served import MODEL, Gate, fake_engine
from starlette.testclient import TestClient

from tpuinfer.engine.engine import Engine
from tpuinfer.server.access import Keys
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.batching import Keeping
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.store import Store
from tpuinfer.testing.fake import FakeTokenizer

URL = "/v1/completions"
KEPT = {"completed", "cancelled", "expired", "failed"}


class Serving:
    """A server on a folder, and a client of it."""

    def __init__(self, folder, client: TestClient, engine: Engine | None, bridge: Bridge) -> None:
        self.folder, self.client, self.engine, self.bridge = folder, client, engine, bridge

    def upload(self, lines: list[Any], **headers: str) -> str:
        data = b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
        form = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", data)}}
        return self.client.post("/v1/files", **form, headers=headers).json()["id"]

    def create(self, lines: list[Any], endpoint: str = URL, **fields: Any) -> str:
        body = {"input_file_id": self.upload(lines), "endpoint": endpoint}
        reply = self.client.post("/v1/batches", json=body | {"completion_window": "24h"} | fields)
        assert reply.status_code == 200, reply.text
        assert reply.json()["status"] == "validating"
        return reply.json()["id"]

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/batches/{batch_id}").json()

    def ended(self, batch_id: str, *statuses: str) -> dict[str, Any]:
        found = until(lambda: self.batch(batch_id), lambda one: one["status"] in (statuses or KEPT))
        OpenAIBatch.model_validate(found, strict=True)
        return found

    def lines(self, file_id: str) -> list[dict[str, Any]]:
        text = self.client.get(f"/v1/files/{file_id}/content").text
        return [json.loads(line) for line in text.splitlines()]


def until(look: Callable[[], Any], holds: Callable[[Any], bool] = bool, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not holds(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
    return found


def timeless(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers without what sets those of one batch apart from those of another."""
    for one in answers:
        del one["id"], one["response"]["request_id"]
        del one["response"]["body"]["id"], one["response"]["body"]["created"]
    return answers


def half_done(server: Serving, count: int, *first: bytes) -> str:
    """A batch of these lines and `count` requests, of which something is done, and never all.

    The engine stands still by then.
    """
    gate = Gate(server.engine)
    made = server.create([*first, *(request(f"r{n}", max_tokens=40) for n in range(count))])
    until(lambda: server.batch(made)["request_counts"]["completed"] > 3)
    gate.shut()
    threading.Timer(0.2, gate.open).start()  # the engine's thread has to end
    return made


def request(name: str, prompt: str = "abc", url: str = URL, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 3, "temperature": 0} | fields
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


@contextlib.contextmanager
def serving(
    folder,
    *,
    identity: str = "m",
    engine: Engine | None = None,
    ready=True,
    notes=(),
    keys=(),
    model: str = MODEL,
) -> Iterator[Serving]:
    engine = engine or fake_engine()
    bridge = Bridge(model)
    if ready:
        bridge.attach(engine, FakeTokenizer())
    keeping = Keeping(Store(folder), identity=lambda: identity)
    options = ServerOptions(Keys(keys), notes=notes, keeping=keeping)
    with TestClient(create_app(bridge, ServerInfo(model), options)) as client:
        yield Serving(folder, client, engine, bridge)
