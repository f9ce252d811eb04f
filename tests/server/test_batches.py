"""Batches on the fake engine: "abc" is answered "defg..."; what is done survives whatever comes."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from batched import URL, Serving, half_done, request, serving, timeless, until
from served import MODEL, Gate, fake_engine

from tpuinfer.server import batch_files, batch_runner, batches
from tpuinfer.server.records import moved
from tpuinfer.server.store import Store
from tpuinfer.server.trail import key_name
from tpuinfer.testing.fake import FakeTokenizer


@pytest.fixture
def server(tmp_path) -> Iterator[Serving]:
    with serving(tmp_path / "data") as server:
        yield server


def test_a_batch_from_its_file_to_its_files(server):
    lines = [request(f"r{n}", chr(97 + n)) for n in range(20)]
    made = server.create(lines, metadata={"who": "me"})
    done = server.ended(made, "completed")
    assert done["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert (done["metadata"], done["error_file_id"], done["errors"]) == ({"who": "me"}, None, None)
    assert done["model"] == MODEL
    times = ("created_at", "in_progress_at", "finalizing_at", "completed_at")
    assert sorted(done[name] for name in times) == [done[name] for name in times]
    assert done["expires_at"] - done["created_at"] == 24 * 3600
    answers = server.lines(done["output_file_id"])
    assert [one["custom_id"] for one in answers] == [f"r{n}" for n in range(20)]
    for n, one in enumerate(answers):
        body = one["response"]["body"]
        direct = server.client.post(URL, json=lines[n]["body"]).json()
        assert body | {"id": 0, "created": 0} == direct | {"id": 0, "created": 0}
        assert (body["created"], one["response"]["status_code"]) == (done["created_at"], 200)
    output = server.client.get(f"/v1/files/{done['output_file_id']}").json()
    assert (output["purpose"], output["filename"]) == ("batch_output", f"{made}_output.jsonl")


def test_bad_lines_have_their_own_file_and_stop_nothing(server):
    made = server.create(
        [
            request("good"),
            b"{",
            request("chat", url="/v1/chat/completions"),
            request("typo", max_tokns=3),
            {"custom_id": "bare"},
        ]
    )
    done = server.ended(made, "completed")
    assert done["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    errors = server.lines(done["error_file_id"])
    found = {one["custom_id"]: one["response"]["body"]["error"] for one in errors}
    assert (found["chat"]["code"], found["chat"]["param"]) == ("mismatched_url", "url")
    assert found["typo"]["code"] == "unknown_parameter"
    assert set(found) == {None, "chat", "typo", "bare"}
    direct = server.client.post(URL, json=request("x", max_tokns=3)["body"]).json()
    assert found["typo"] == direct["error"]


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([request("a"), request("b"), request("a")], "duplicate_custom_id", 3),
        ([], "empty_file", None),
        ([b"", b"  "], "empty_file", None),
    ],
)
def test_files_that_are_no_batch_fail(server, lines, code, line):
    done = server.ended(server.create(lines), "failed")
    [error] = done["errors"]["data"]
    assert (error["code"], error["line"]) == (code, line)
    assert done["failed_at"] >= done["created_at"]
    assert (done["output_file_id"], done["error_file_id"]) == (None, None)
    assert str(server.folder) not in error["message"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"endpoint": "/v1/responses"}, (400, "endpoint", "invalid_value")),
        ({"endpoint": "/v1/embeddings"}, (400, "model", "unsupported_endpoint")),
        ({"completion_window": "1h"}, (400, "completion_window", "invalid_value")),
        ({"input_file_id": "file-none"}, (404, "input_file_id", "file_not_found")),
        ({"input_file_id": None}, (400, "input_file_id", "missing_required_parameter")),
        ({"metadata": {"a": 1}}, (400, "metadata.a", "invalid_type")),
        ({"metadata": {str(n): "" for n in range(17)}}, (400, "metadata", "invalid_value")),
        ({"metadata": {"k" * 65: ""}}, (400, "metadata", "invalid_value")),
        ({"metadata": {"k": "v" * 513}}, (400, "metadata", "invalid_value")),
        ({"output_expires_after": {}}, (400, "output_expires_after", "unsupported_parameter")),
        ({"window": "24h"}, (400, "window", "unknown_parameter")),
    ],
)
def test_what_is_no_batch_is_refused_by_name(server, fields, expected):
    body = {"input_file_id": server.upload([]), "endpoint": URL, "completion_window": "24h"}
    reply = server.client.post("/v1/batches", json=body | fields)
    found = reply.json()["error"]
    assert (reply.status_code, found["param"], found["code"]) == expected
    assert server.client.get("/v1/batches").json()["data"] == []


def test_lists_go_page_by_page(server):
    made = [server.create([request("a")]) for _ in range(3)]
    page = server.client.get("/v1/batches?limit=2").json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:0:-1], True)
    page = server.client.get(f"/v1/batches?limit=2&after={page['last_id']}").json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:1], False)
    for path in ("/v1/batches/batch_none", "/v1/batches?after=batch_none"):
        assert server.client.get(path).status_code == 404


def test_too_many_open_batches_are_refused(server, monkeypatch):
    monkeypatch.setattr(batches, "MOST_OPEN", 1)
    gate = Gate(server.engine)
    gate.shut()
    server.create([request("a")])
    body = {"input_file_id": server.upload([]), "endpoint": URL, "completion_window": "24h"}
    reply = server.client.post("/v1/batches", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_batches")
    gate.open()


def test_cancelling_keeps_what_is_done(server, monkeypatch):
    monkeypatch.setattr(batch_runner, "CANCEL_SECONDS", 0.1)
    gate = Gate(server.engine)
    made = server.create([request(f"r{n}", max_tokens=50) for n in range(2000)])
    until(lambda: server.batch(made)["request_counts"]["completed"] > 3)
    gate.shut()
    reply = server.client.post(f"/v1/batches/{made}/cancel").json()
    assert reply["status"] == "cancelling"
    again = server.client.post(f"/v1/batches/{made}/cancel").json()
    assert again["cancelling_at"] == reply["cancelling_at"]
    done = server.ended(made, "cancelled")
    gate.open()
    answers = server.lines(done["output_file_id"])
    assert 3 < len(answers) == done["request_counts"]["completed"] < 2000
    assert done["cancelling_at"] <= done["cancelled_at"]
    assert server.client.post(f"/v1/batches/{made}/cancel").status_code == 409
    until(lambda: not server.engine.has_work)


def test_cancelling_what_waits_does_not_wait(server):
    gate = Gate(server.engine)
    gate.shut()
    first = server.create([request("a")])
    until(lambda: gate.waiting)
    second = server.create([request("a")])
    server.client.post(f"/v1/batches/{second}/cancel")
    done = server.ended(second, "cancelled")
    assert (done["output_file_id"], done["request_counts"]["completed"]) == (None, 0)
    assert server.batch(first)["status"] == "in_progress"
    gate.open()
    server.ended(first, "completed")


def test_an_input_stays_until_its_batch_has_ended(server):
    gate = Gate(server.engine)
    gate.shut()
    made = server.create([request("a")])
    until(lambda: gate.waiting)
    file_id = server.batch(made)["input_file_id"]
    reply = server.client.delete(f"/v1/files/{file_id}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "file_in_use")
    gate.open()
    done = server.ended(made, "completed")
    for name in (file_id, done["output_file_id"]):
        assert server.client.delete(f"/v1/files/{name}").status_code == 200
    assert server.batch(made) == done
    assert list((server.folder / "batches").iterdir()) == []


def test_what_is_left_when_the_window_ends_says_so(tmp_path):
    with serving(tmp_path) as server:
        made = half_done(server, 2000)
    store = Store(tmp_path)

    def aged(one):
        return replace(one, shown=one.shown.model_copy(update={"expires_at": 1}))

    store.change(made, aged)
    store.close()
    with serving(tmp_path) as server:
        done = server.ended(made, "expired")
        counts = done["request_counts"]
        assert (counts["total"], counts["completed"] + counts["failed"]) == (2000, 2000)
        answers = server.lines(done["output_file_id"])
        errors = server.lines(done["error_file_id"])
        ids = [one["custom_id"] for one in answers + errors]
        assert sorted(ids) == sorted(f"r{n}" for n in range(2000))
        assert all(one["response"] is None for one in errors)
        assert {one["error"]["code"] for one in errors} == {"batch_expired"}
        assert 3 < len(answers) == counts["completed"]


def test_a_restart_goes_on_where_it_was(tmp_path):
    engine = fake_engine()
    gate = Gate(engine)
    lines = [request(f"r{n}", chr(97 + n % 20), temperature=1.0) for n in range(300)]
    with serving(tmp_path / "a") as server:
        done = server.ended(server.create(lines), "completed")
        whole = server.lines(done["output_file_id"])
    with serving(tmp_path / "b", engine=engine) as server:
        made = server.create(lines)
        until(lambda: server.batch(made)["request_counts"]["completed"] > 20)
        gate.shut()
        threading.Timer(0.2, gate.open).start()
    store = Store(tmp_path / "b")
    between = store.batch(made).shown
    store.close()
    assert between.status == "in_progress"
    assert 20 < between.request_counts.completed < 300
    with serving(tmp_path / "b") as server:
        resumed = server.ended(made, "completed")
        assert resumed["request_counts"]["completed"] == 300
        assert timeless(server.lines(resumed["output_file_id"])) == timeless(whole)


def test_another_model_does_not_go_on(tmp_path):
    with serving(tmp_path) as server:
        made = half_done(server, 2000)
    with serving(tmp_path, identity="other") as server:
        done = server.ended(made, "failed")
        assert [one["code"] for one in done["errors"]["data"]] == ["model_changed"]
        assert len(server.lines(done["output_file_id"])) == done["request_counts"]["completed"] > 3


def test_a_reload_in_the_middle_ends_a_batch(server):
    made = server.create([request(f"r{n}", max_tokens=40) for n in range(2000)])
    until(lambda: server.batch(made)["request_counts"]["completed"] > 3)
    server.engine.metrics.version += 1
    done = server.ended(made, "failed")
    assert [one["code"] for one in done["errors"]["data"]] == ["model_changed"]
    assert len(server.lines(done["output_file_id"])) == done["request_counts"]["completed"] > 3


def test_what_was_being_cancelled_is_cancelled_after_a_restart(tmp_path):
    with serving(tmp_path) as server:
        made = half_done(server, 2000)
    store = Store(tmp_path)
    store.change(made, lambda one: replace(one, shown=moved(one.shown, "cancelling")))
    store.close()
    with serving(tmp_path, ready=False) as server:
        done = server.ended(made, "cancelled")
        assert len(server.lines(done["output_file_id"])) == done["request_counts"]["completed"] > 3


def test_it_waits_until_there_is_a_model(tmp_path):
    with serving(tmp_path, ready=False) as server:
        made = server.create([request("a")])
        until(lambda: server.batch(made)["status"] == "in_progress")
        time.sleep(0.15)
        assert server.batch(made)["request_counts"] == {"total": 1, "completed": 0, "failed": 0}
        server.bridge.attach(server.engine, FakeTokenizer())
        server.ended(made, "completed")


def test_a_server_that_drains_does_not_wait_for_it(tmp_path):
    engine = fake_engine()
    engine.runner.seconds = 0.01
    with serving(tmp_path, engine=engine) as server:
        made = server.create([request(f"r{n}", max_tokens=60) for n in range(2000)])
        until(lambda: engine.metrics.running > 0)
        assert not server.bridge.idle
        server.bridge.drain()
        until(lambda: server.bridge.idle, seconds=2)
        assert server.batch(made)["status"] == "in_progress"


def test_a_full_journal_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runner, "_AGAIN_SECONDS", 0.05)
    from tpuinfer.offline.ledger import Ledger
    from tpuinfer.offline.task import BatchError

    record, tries = Ledger.record, []

    def full(self, *args):
        tries.append(1)
        if len(tries) in (3, 5):
            raise BatchError("the disk is full")
        return record(self, *args)

    monkeypatch.setattr(Ledger, "record", full)
    with serving(tmp_path) as server:
        done = server.ended(server.create([request(f"r{n}") for n in range(30)]), "completed")
        assert len(server.lines(done["output_file_id"])) == 30
    assert len(tries) > 30


def test_an_unforeseen_error_ends_the_batch_and_not_the_worker(server, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(batch_runner.BatchLines, "answer", None)
        done = server.ended(server.create([request("a")]), "failed")
        assert [one["code"] for one in done["errors"]["data"]] == ["internal_error"]
    server.ended(server.create([request("a")]), "completed")


def test_a_file_that_cannot_be_read_fails_without_naming_a_path(server, monkeypatch):
    from tpuinfer.offline.task import BatchError

    def unreadable(*_):
        raise BatchError(f"{server.folder}: cannot be read")

    monkeypatch.setattr(batch_files, "open_source", unreadable)
    done = server.ended(server.create([request("a")]), "failed")
    [error] = done["errors"]["data"]
    assert error["code"] == "invalid_file"
    assert str(server.folder) not in error["message"]


def test_each_key_has_its_own(tmp_path):
    notes = []
    one, two = ({"Authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
    keys = ["key-of-one", "key-of-two"]
    with serving(tmp_path, keys=keys, notes=[notes.append]) as server:
        body = {"endpoint": URL, "completion_window": "24h"}
        body["input_file_id"] = server.upload([request("a")], **one)
        stolen = server.client.post("/v1/batches", json=body, headers=two)
        assert (stolen.status_code, stolen.json()["error"]["code"]) == (404, "file_not_found")
        made = server.client.post("/v1/batches", json=body, headers=one).json()["id"]
        path = f"/v1/batches/{made}"
        assert server.client.get(path, headers=two).status_code == 404
        assert server.client.post(path + "/cancel", headers=two).status_code == 404
        assert server.client.get("/v1/batches", headers=two).json()["data"] == []
        done = until(
            lambda: server.client.get(path, headers=one).json(),
            lambda found: found["status"] == "completed",
        )
        content = f"/v1/files/{done['output_file_id']}/content"
        assert server.client.get(content, headers=two).status_code == 404
        assert server.client.get(content, headers=one).status_code == 200
    [line] = [note for note in notes if note.method == "POST" and note.route.endswith("(batch)")]
    assert line.key == key_name("key-of-one")


def test_the_numbers(server):
    server.ended(server.create([request("a"), b"{"]), "completed")
    text = server.client.get("/metrics").text
    for line in (
        'tpuinfer:batches{status="completed"} 1.0',
        'tpuinfer:batch_lines_total{outcome="answered"} 1.0',
        'tpuinfer:batch_lines_total{outcome="failed"} 1.0',
    ):
        assert line in text


def test_the_document_and_the_capabilities_have_them(server):
    paths = server.client.get("/openapi.json").json()["paths"]
    for path, methods in {
        "/v1/files": {"get", "post"},
        "/v1/files/{file_id}": {"get", "delete"},
        "/v1/files/{file_id}/content": {"get"},
        "/v1/batches": {"get", "post"},
        "/v1/batches/{batch_id}": {"get"},
        "/v1/batches/{batch_id}/cancel": {"post"},
    }.items():
        assert set(paths[path]) == methods
    found = server.client.get("/v1/capabilities").json()["endpoints"]["/v1/batches"]
    assert found["completion_window"]["required"] is True
    assert found["output_expires_after"]["supported"] is False
