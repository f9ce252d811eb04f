"""/admin/reload on a tiny model: real checkpoints, real programs, a guard that forbids compiles."""

import json
import shutil
import threading
import time

import pytest
import tiny_model
from starlette.testclient import TestClient

from tpuinfer import LLM, SamplingParams
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build, reload
from tpuinfer.errors import CheckpointError
from tpuinfer.server.access import Keys
from tpuinfer.server.admin import Operations
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo

MODEL, PROMPT, TOKENS = "tiny", "To be, or", 20
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """root/old, root/new of the same shapes, root/deeper of others, and new's twin outside."""
    folder = tmp_path_factory.mktemp("reload")
    root = folder / "root"
    root.mkdir()
    tiny_model.write_checkpoint(root / "old")
    tiny_model.write_checkpoint(root / "new", seed=1)
    shutil.copytree(root / "new", folder / "outside")
    (root / "link").symlink_to(folder / "outside")
    shutil.copytree(root / "new", root / "deeper")
    config = json.loads((root / "deeper" / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] += 1
    (root / "deeper" / "config.json").write_text(json.dumps(config), "utf-8")
    shutil.copytree(root / "new", root / "cut")
    (root / "cut" / "params" / "state" / "manifest.ocdbt").unlink()
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    cache = folder / "cache"
    engine = EngineConfig.parse(2, 64, strict_compile=True)
    plan = build.make_plan(folder / "root" / "old", engine=engine, cache_dir=cache)
    return build.load(plan, max_waiting=10, cache_dir=cache)


@pytest.fixture(scope="module")
def texts(folder, loaded):
    """What an engine started on each of the two says."""
    new = LLM(folder / "root" / "new", cache_dir=folder / "cache", slots=2, context=64)
    said = [
        llm.generate(PROMPT, GREEDY)[0].outputs[0].text for llm in (LLM.from_loaded(loaded), new)
    ]
    assert said[0] != said[1]
    return dict(zip(("old", "new"), said, strict=True))


@pytest.fixture(scope="module")
def running(folder, loaded, texts):
    def weights(name):
        return reload.read_weights(loaded.plan, reload.below(str(folder / "root"), name))

    bridge = Bridge(MODEL)
    bridge.attach(loaded.engine, loaded.tokenizer)
    options = ServerOptions(Keys(admin=["admin-key"]), operations=Operations(weights=weights))
    headers = {"Authorization": "Bearer admin-key"}
    with TestClient(create_app(bridge, ServerInfo(MODEL), options), headers=headers) as client:
        yield client


@pytest.fixture
def client(running, loaded):
    """The server, on the old weights before and after."""
    old = dict(loaded.runner._params)
    yield running
    loaded.runner.update(old)


def say(client):
    ask = {"model": MODEL, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    reply = client.post("/v1/completions", json=ask | {"ignore_eos": True})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def change(client, path):
    return client.post("/admin/reload", json={"path": path})


def version(client):
    return client.get(f"/v1/models/{MODEL}").json()["version"]


def test_other_weights_answer_as_if_they_had_been_loaded(client, loaded, texts):
    before = version(client)
    assert say(client) == texts["old"]
    assert change(client, "new").json() == {"version": before + 1, "path": "new"}
    assert (say(client), version(client)) == (texts["new"], before + 1)
    assert change(client, "old").json()["version"] == before + 2
    assert (say(client), version(client)) == (texts["old"], before + 2)
    assert loaded.runner.guard.recompiles == 0


def test_an_answer_that_has_begun_ends_on_the_old_weights(client, loaded, texts, monkeypatch):
    """The first step of the answer is done when the reload comes; the rest waits until it has."""
    engine, said, begun, asked = loaded.engine, [], threading.Event(), threading.Event()
    step, update = engine.step, engine.update

    def slow_step():
        if begun.is_set() and not asked.is_set():
            time.sleep(0.005)  # one token at a time, until the weights are there
        begun.set()
        return step()

    def note(params, done):
        at_work.append(engine.metrics.running)
        update(params, done)
        asked.set()

    at_work = []
    monkeypatch.setattr(engine, "step", slow_step)
    monkeypatch.setattr(engine, "update", note)
    asks = threading.Thread(target=lambda: said.append(say(client)))
    asks.start()
    assert begun.wait(30)
    assert change(client, "new").status_code == 200
    asks.join(30)
    assert (said, at_work) == ([texts["old"]], [1])
    assert say(client) == texts["new"]


REFUSED = ["none", "deeper", "cut", "link", "../outside", "old/../../outside", ".", "gs://b/new"]


@pytest.mark.parametrize("path", [*REFUSED, "https://example.com/new", "/etc"])
def test_what_is_no_such_checkpoint_leaves_the_old_weights(client, folder, texts, path):
    before = version(client)
    reply = change(client, path)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], "\n" in error["message"]) == ("path", False)
    assert f"path is {path!r}" in error["message"]
    assert str(folder) not in reply.text
    assert (say(client), version(client)) == (texts["old"], before)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("link", "leads out of"),
        ("../outside", "without '..'"),
        ("/etc", "below"),
        ("deeper", "another model"),
        ("none", "none"),
        ("cut", "manifest.ocdbt is missing"),
    ],
)
def test_the_log_has_why(loaded, folder, path, why):
    with pytest.raises(CheckpointError, match=why):
        reload.read_weights(loaded.plan, reload.below(str(folder / "root"), path))
