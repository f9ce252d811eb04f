"""Batches when something is in their way: obstacles pass, ends stay, and nothing waits in vain."""

import asyncio
import errno
import importlib.metadata
import os
import sqlite3
import threading
import time
from dataclasses import replace

import pytest
from batched import URL, half_done, request, serving, until
from served import MODEL, fake_engine
from starlette.testclient import TestClient

from tpuinfer.offline import index, manifest
from tpuinfer.offline.batch import Batch
from tpuinfer.offline.ledger import Ledger
from tpuinfer.offline.task import BatchError
from tpuinfer.server import batch_files, batch_runner, batches, files
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.records import Counts
from tpuinfer.server.store import Page, Store


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(batch_runner, "_AGAIN_SECONDS", 0.2)


def _full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def _tables_full(*_):
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def _first_time(monkeypatch, where, name, instead):
    """`instead` once, and from then on what was there."""
    real, calls = getattr(where, name), []

    def patched(*args):
        calls.append(1)
        return (instead if len(calls) == 1 else real)(*args)

    monkeypatch.setattr(where, name, patched)
    return calls


def _killed(folder, **shown):
    """A batch half done, whose counts were not noted; `shown`: fields as the store has them."""
    with serving(folder) as server:
        made = half_done(server, 2000, b"{")
    store = Store(folder)
    shown = {"request_counts": Counts(total=2001)} | shown
    store.change(made, lambda one: replace(one, shown=one.shown.model_copy(update=shown)))
    store.close()
    return made


@pytest.mark.parametrize(
    ("where", "name"), [(manifest, "put"), (index, "_nameless_file"), (os, "pwrite")]
)
def test_a_disk_that_is_full_for_a_while_ends_nothing(tmp_path, monkeypatch, where, name):
    with serving(tmp_path) as server:
        calls = _first_time(monkeypatch, where, name, _full)
        done = server.ended(server.create([request("a")]))
        assert (done["status"], done["errors"]) == ("completed", None)
    assert len(calls) > 1


def test_tables_that_are_full_for_a_while_end_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runner, "_SAVE_SECONDS", 0.05)
    engine = fake_engine()
    engine.runner.seconds = 0.005
    with serving(tmp_path, engine=engine) as server:
        made = server.create([request(f"r{n}", max_tokens=40) for n in range(90)])
        until(lambda: server.batch(made)["request_counts"]["completed"] > 3)
        with monkeypatch.context() as patched:
            patched.setattr(Store, "change", _tables_full)
            time.sleep(0.3)
        done = server.ended(made)
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 90)


def test_an_obstacle_of_one_batch_is_none_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_runner, "_AGAIN_SECONDS", 60)
    real, stuck = batch_files.opened, []

    def opened(store, record, *args, **more):
        stuck.append(record.shown.id)
        if record.shown.id == stuck[0]:
            raise BatchError("another process writes these files")
        return real(store, record, *args, **more)

    monkeypatch.setattr(batch_files, "opened", opened)
    with serving(tmp_path) as server:
        first, second = server.create([request("a")]), server.create([request("a")])
        server.ended(second, "completed")
        assert server.batch(first)["status"] == "in_progress"
        server.client.post(f"/v1/batches/{first}/cancel")
        server.ended(first, "cancelled")


def test_one_whose_time_is_over_waits_for_a_disk_too(tmp_path, monkeypatch):
    made = _killed(tmp_path, expires_at=1)
    opens, real = [], batch_files.opened

    def opened(*args, **more):
        opens.append(1)
        return real(*args, **more)

    monkeypatch.setattr(batch_files, "opened", opened)
    with serving(tmp_path) as server:
        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "record", lambda *_: _raise(BatchError("the disk is full")))
            time.sleep(0.5)
            assert 0 < len(opens) <= 4
            assert server.batch(made)["status"] in ("in_progress", "finalizing")
        counts = server.ended(made, "expired")["request_counts"]
        assert counts["completed"] + counts["failed"] == counts["total"] == 2001


def _raise(error):
    raise error


def test_one_that_cannot_be_opened_fails_when_its_time_is_over(tmp_path, monkeypatch):
    made = _killed(tmp_path, expires_at=int(time.time()) + 1)
    damaged = BatchError("a line in the middle is no JSON")
    monkeypatch.setattr(batch_files, "opened", lambda *_, **__: _raise(damaged))
    with serving(tmp_path) as server:
        until(lambda: time.time() > server.batch(made)["expires_at"])
        done = server.ended(made, "failed")
        assert [one["code"] for one in done["errors"]["data"]] == ["invalid_state"]
        assert len(server.lines(done["output_file_id"])) > 3


def test_what_is_cancelled_in_validation_stays_so(tmp_path, monkeypatch):
    hold, real = threading.Event(), batch_files.counted

    def slow(*args):
        hold.wait(5)
        return real(*args)

    monkeypatch.setattr(batch_files, "counted", slow)
    with serving(tmp_path) as server:
        made = server.create([])
        server.client.post(f"/v1/batches/{made}/cancel")
        done = server.ended(made, "cancelled")
        hold.set()
        time.sleep(0.2)
        assert server.batch(made) == done


@pytest.mark.parametrize("status", ["cancelling", "in_progress"])
def test_counts_after_a_kill_are_those_of_the_journals(tmp_path, status):
    made = _killed(tmp_path, status=status)
    identity = "m" if status == "cancelling" else "other"
    with serving(tmp_path, identity=identity, ready=identity == "other") as server:
        done = server.ended(made, "cancelled" if status == "cancelling" else "failed")
        answers = server.lines(done["output_file_id"])
        assert done["request_counts"]["completed"] == len(answers) > 3
        order = [int(one["custom_id"][1:]) for one in answers]
        assert order == sorted(order)
        [error] = server.lines(done["error_file_id"])
        assert (error["custom_id"], done["request_counts"]["failed"]) == (None, 1)
        held = [os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")]
        assert not [one for one in held if made in one]


@pytest.mark.parametrize("identity", ["m", "other"])
def test_a_kill_at_the_very_end_loses_nothing(tmp_path, identity):
    with serving(tmp_path) as server:
        made = server.create([request(f"r{n}") for n in range(5)])
        server.ended(made, "completed")
    store = Store(tmp_path)
    back = {"status": "finalizing", "completed_at": None, "output_file_id": None}
    shown = store.batch(made).shown.model_copy(update=back)
    with store._writing() as db:
        query = "UPDATE batches SET status = ?, shown = ? WHERE id = ?"
        db.execute(query, ("finalizing", shown.model_dump_json(), made))
    store.close()
    with serving(tmp_path, identity=identity) as server:
        done = server.ended(made)
        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 5)
        assert len(server.lines(done["output_file_id"])) == 5


def test_another_version_of_the_software_is_named(tmp_path, monkeypatch):
    made = _killed(tmp_path)
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9" if name == "jax" else real(name)
    )
    with serving(tmp_path) as server:
        done = server.ended(made, "failed")
        [error] = done["errors"]["data"]
        assert error["code"] == "model_changed"
        assert "version of jax: was" in error["message"]
        assert len(server.lines(done["output_file_id"])) == done["request_counts"]["completed"] > 3


def test_a_batch_is_not_begun_with_another_model_than_it_was_made_for(tmp_path):
    with serving(tmp_path, ready=False) as server:
        made = server.create([request("a")])
        until(lambda: server.batch(made)["status"] == "in_progress")
    with serving(tmp_path, model="other") as server:
        done = server.ended(made, "failed")
        [error] = done["errors"]["data"]
        assert error["code"] == "model_changed"
        assert "'other'" in error["message"]
        assert done["error_file_id"] is None


def test_an_error_of_closing_does_not_keep_a_server_from_stopping(tmp_path, monkeypatch):
    real = Batch.close

    def close(self):
        real(self)
        raise BatchError("the journal could not be made durable")

    monkeypatch.setattr(Batch, "close", close)
    monkeypatch.setattr(batch_runner, "_AGAIN_SECONDS", 60)
    engine = fake_engine()
    engine.runner.seconds = 0.01
    context = serving(tmp_path, engine=engine)
    server = context.__enter__()
    made = server.create([request(f"r{n}", max_tokens=40) for n in range(2000)])
    until(lambda: server.batch(made)["request_counts"]["completed"] > 3)
    leaving = threading.Thread(target=context.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(6)
    assert not leaving.is_alive()


def test_a_stop_does_not_wait_for_an_input_to_be_read(tmp_path, monkeypatch):
    begun, real = threading.Event(), batch_files.open_source

    class Endless:
        def __init__(self, source):
            self._source = source

        def tasks(self):
            begun.set()
            while True:
                yield from self._source.tasks()
                time.sleep(0.01)

    monkeypatch.setattr(batch_files, "open_source", lambda *args: Endless(real(*args)))
    with serving(tmp_path) as server:
        server.create([request("a")])
        assert begun.wait(5)
        start = time.monotonic()
    assert time.monotonic() - start < 5


def test_a_folder_may_have_any_name(tmp_path):
    with serving(tmp_path / "a[b]*") as server:
        server.ended(server.create([request("a")]), "completed")


def test_ids_tell_batches_apart_and_seeds_do_not(tmp_path):
    found = []
    with serving(tmp_path) as server:
        for _ in range(2):
            done = server.ended(server.create([request("a", temperature=1.0)]), "completed")
            [line] = server.lines(done["output_file_id"])
            body = line["response"]["body"]
            found.append((line["id"], line["response"]["request_id"], body["id"]))
            found.append(body["choices"])
    assert not set(found[0]) & set(found[2])
    assert found[1] == found[3]


def test_an_output_is_no_input(tmp_path):
    with serving(tmp_path) as server:
        done = server.ended(server.create([request("a")]), "completed")
        body = {"input_file_id": done["output_file_id"], "endpoint": URL}
        reply = server.client.post("/v1/batches", json=body | {"completion_window": "24h"})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "input_file_id")
        assert "batch_output" in error["message"]


def test_one_key_does_not_take_the_places_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_OPEN", 1)
    one, two = ({"Authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
    codes = []
    with serving(tmp_path, keys=["key-of-one", "key-of-two"], ready=False) as server:
        for who in (one, one, two):
            body = {"input_file_id": server.upload([request("a")], **who), "endpoint": URL}
            body["completion_window"] = "24h"
            codes.append(server.client.post("/v1/batches", json=body, headers=who).status_code)
    assert codes == [200, 429, 200]


def test_what_is_not_kept_is_not_offered():
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL))) as client:
        assert "/v1/batches" not in client.get("/v1/capabilities").json()["endpoints"]


def test_deleting_on_a_full_disk_says_so(tmp_path, monkeypatch):
    with serving(tmp_path) as server:
        file_id = server.upload([request("a")])
        with monkeypatch.context() as patched:
            patched.setattr(Store, "remove_file", _tables_full)
            reply = server.client.delete(f"/v1/files/{file_id}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (507, "disk_full")


def test_an_upload_that_is_cancelled_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    real, begun = Store.add_file, threading.Event()

    def slow(self, record):
        begun.set()
        time.sleep(0.2)
        real(self, record)

    monkeypatch.setattr(Store, "add_file", slow)
    head = "Content-Disposition: form-data; name="
    form = f'--b\r\n{head}"file"; filename="f"\r\n\r\nxyz\r\n--b\r\n{head}"purpose"\r\n\r\nbatch'

    class Http:
        def __init__(self):
            self.headers = {"content-type": "multipart/form-data; boundary=b"}

        async def stream(self):
            yield f"{form}\r\n--b--\r\n".encode()

    store = Store(tmp_path)

    async def leave():
        upload = asyncio.create_task(files._taken(Http(), store, 1000))
        await asyncio.to_thread(begun.wait, 5)
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)

    asyncio.run(leave())
    [record] = store.files(Page(None, 10), None, None)
    assert store.path_of(record).read_bytes() == b"xyz"
    store.close()


def test_an_ended_batch_stays_as_it_is(tmp_path):
    with serving(tmp_path) as server:
        made = server.create([request("a")])
        server.ended(made, "completed")
    store = Store(tmp_path)
    before = store.batch(made)
    moved = before.shown.model_copy(update={"status": "in_progress"})
    with pytest.raises(AssertionError, match="ended"):
        store.change(made, lambda one: replace(one, shown=moved))
    assert batch_files.end(store, made, lambda _: moved) == before
    assert store.batch(made) == before
    store.close()
