"""Other weights, and profiles, on the fake engine."""

import threading
import time

import pytest
from served import MODEL, Gate
from starlette.testclient import TestClient

from tpuinfer.errors import CheckpointError, RequestError
from tpuinfer.server.access import Keys
from tpuinfer.server.admin import Operations
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.info import ServerInfo

KEY = {"Authorization": "Bearer admin-key"}


@pytest.fixture
def admin(bridge):
    def weights(path):
        if path == "none":
            raise CheckpointError("/secret/root/none: no such directory")
        return path

    def profile(seconds):
        asked.append(seconds)
        return "profile-1"

    asked = []
    does = Operations(weights, profile)
    options = ServerOptions(Keys(admin=["admin-key"]), operations=does, versions={"tpuinfer": "7"})
    with TestClient(create_app(bridge, ServerInfo(MODEL), options), headers=KEY) as client:
        client.asked = asked
        yield client


def reload(client, path):
    return client.post("/admin/reload", json={"path": path})


def version(client):
    return client.get(f"/v1/models/{MODEL}").json()["version"]


def test_other_weights_have_another_version(admin, engine, monkeypatch):
    taken = []
    monkeypatch.setattr(engine.runner, "update", taken.append)
    assert version(admin) == 0
    assert reload(admin, "step-1").json() == {"version": 1, "path": "step-1"}
    assert (taken, version(admin)) == (["step-1"], 1)


def test_a_request_in_flight_keeps_the_old_weights(admin, engine, monkeypatch):
    taken = []
    monkeypatch.setattr(engine.runner, "update", lambda _: taken.append(engine.metrics.running))
    gate = Gate(engine)
    gate.shut()
    replies = []
    ask = {"model": MODEL, "prompt": "a", "max_tokens": 30}
    asked = threading.Thread(
        target=lambda: replies.append(admin.post("/v1/completions", json=ask).status_code)
    )
    asked.start()
    while not gate.waiting:
        time.sleep(0.001)
    gate.open()
    assert reload(admin, "step-1").status_code == 200
    asked.join()
    assert (replies, taken) == ([200], [0])


def test_weights_that_do_not_fit_leave_the_old_ones(admin, engine, monkeypatch):
    def refuse(_):
        raise RequestError("norm.weight is [3] and must be [4]")

    monkeypatch.setattr(engine.runner, "update", refuse)
    reply = reload(admin, "step-1")
    assert (reply.status_code, version(admin)) == (400, 0)
    assert "norm.weight" in reply.json()["error"]["message"]
    reply = reload(admin, "none")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "path")
    assert "secret" not in reply.text
    ask = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    assert admin.post("/v1/completions", json=ask).status_code == 200


def test_a_profile(admin):
    reply = admin.post("/admin/profile", json={"seconds": 0.5})
    assert reply.json() == {"name": "profile-1", "seconds": 0.5}
    assert admin.asked == [0.5]
    for seconds in (0, 61, "1"):
        assert admin.post("/admin/profile", json={"seconds": seconds}).status_code == 400


def test_the_version_of_what_runs(admin):
    assert admin.get("/version").json() == {"version": "7", "libraries": {}, "model": MODEL}
