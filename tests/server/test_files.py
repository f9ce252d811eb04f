"""Uploads, lists and downloads: what is there is whole, and what is refused leaves nothing."""

import errno
import os

import pytest
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.server import upload
from tpuinfer.server.access import Keys
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.batching import Keeping
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.records import FileObject
from tpuinfer.server.store import Store, StoreError

LINES = b'{"custom_id": "a"}\n'
MOST = 2**20 + 100


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def client(folder):
    options = ServerOptions(keeping=Keeping(Store(folder), most_bytes=MOST))
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL), options)) as client:
        yield client


def send(client, data=LINES, name="in.jsonl", headers=None, **fields):
    fields = {"purpose": "batch"} | fields
    return client.post("/v1/files", data=fields, files={"file": (name, data)}, headers=headers)


def blobs(folder):
    return sorted(path.name for path in (folder / "files").iterdir())


def error(reply):
    found = reply.json()["error"]
    return reply.status_code, found["param"], found["code"]


def test_what_was_sent_comes_back(client, folder):
    data = bytes(range(256)) * 4096 + b"\r\n--x\r\n"
    made = send(client, data, name="../../etc/été.jsonl")
    assert made.status_code == 200
    found = made.json()
    FileObject.model_validate(found)
    assert (found["bytes"], found["filename"]) == (len(data), "../../etc/été.jsonl")
    assert (found["purpose"], found["status"], found["object"]) == ("batch", "processed", "file")
    assert client.get(f"/v1/files/{found['id']}").json() == found
    content = client.get(f"/v1/files/{found['id']}/content")
    assert content.content == data
    assert content.headers["content-type"] == "application/jsonl"
    assert blobs(folder) == [found["id"] + ".jsonl"]


def test_an_empty_file_is_one(client):
    assert send(client, b"").json()["bytes"] == 0


def test_the_file_may_come_before_its_purpose(client):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nxyz\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/files", content=body, headers=kind).json()["bytes"] == 3


def test_lists_go_page_by_page(client):
    ids = [send(client).json()["id"] for _ in range(5)]

    def page(**query):
        return client.get("/v1/files", params=query).json()

    whole = page()
    assert [one["id"] for one in whole["data"]] == ids[::-1]
    assert (whole["has_more"], whole["first_id"], whole["last_id"]) == (False, ids[4], ids[0])
    first = page(limit=2, order="asc")
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:2], True)
    rest = page(limit=3, order="asc", after=ids[1])
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert page(purpose="batch_output")["data"] == []
    assert page(after=ids[0])["first_id"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"limit": 0}, (400, "limit", "invalid_value")),
        ({"limit": 10_001}, (400, "limit", "invalid_value")),
        ({"limit": "x"}, (400, "limit", "invalid_value")),
        ({"order": "up"}, (400, "order", "invalid_value")),
        ({"after": "file-none"}, (404, "after", "file_not_found")),
        ({"afer": "x"}, (400, "afer", "unknown_parameter")),
    ],
)
def test_what_a_list_is_not_asked_for(client, query, expected):
    assert error(client.get("/v1/files", params=query)) == expected


def test_deleted_is_gone(client, folder):
    made = send(client).json()["id"]
    reply = client.delete(f"/v1/files/{made}").json()
    assert reply == {"id": made, "object": "file", "deleted": True}
    assert blobs(folder) == []
    for path in (f"/v1/files/{made}", f"/v1/files/{made}/content"):
        assert error(client.get(path)) == (404, "file_id", "file_not_found")
    assert error(client.delete(f"/v1/files/{made}")) == (404, "file_id", "file_not_found")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"purpose": "fine-tune"}, (400, "purpose", "unsupported_value")),
        (
            {"expires_after[anchor]": "created_at"},
            (400, "expires_after[anchor]", "unknown_parameter"),
        ),
        ({"purpose": "b" * 2000}, (400, "purpose", "invalid_value")),
    ],
)
def test_fields_are_refused_by_name(client, folder, fields, expected):
    assert error(send(client, **fields)) == expected
    assert blobs(folder) == []


PART = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
FILE = PART % (b"file", b'; filename="f"', b"xyz")
PURPOSE = PART % (b"purpose", b"", b"batch")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PURPOSE + b"--b--", (400, "file", "missing_required_parameter")),
        (FILE + b"--b--", (400, "purpose", "missing_required_parameter")),
        (FILE + FILE + b"--b--", (400, "file", "invalid_value")),
        (PURPOSE + PURPOSE + FILE + b"--b--", (400, "purpose", "invalid_value")),
        (PURPOSE + PART % (b"file", b"", b"xyz") + b"--b--", (400, "file", "invalid_type")),
        (PURPOSE + FILE, (400, None, "invalid_body")),
        (b"what is this", (400, None, "invalid_body")),
        (b"--b\r\n\r\nnameless\r\n--b--", (400, None, "invalid_body")),
        (PURPOSE + FILE + b"--b--" + b"." * 2**18, (400, None, "invalid_body")),
    ],
)
def test_what_is_no_form_leaves_nothing(client, folder, body, expected):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert error(client.post("/v1/files", content=body, headers=kind)) == expected
    assert blobs(folder) == []


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "", None])
def test_another_content_type_is_refused(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    reply = client.post("/v1/files", content=b"{}", headers=headers)
    assert error(reply) == (400, None, "invalid_body")


@pytest.mark.parametrize("declared", [True, False])
def test_too_large_is_refused(client, folder, declared):
    assert send(client, b"x" * MOST).status_code == 200
    kept = blobs(folder)
    if declared:
        reply = send(client, b"x" * (MOST + 2**17))
    else:
        start = (
            PURPOSE + b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        )
        pieces = iter([start, *[b"x" * 2**16] * 17, b"\r\n--b--"])
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        reply = client.post("/v1/files", content=pieces, headers=kind)
    assert error(reply) == (413, None, "body_too_large")
    assert blobs(folder) == kept


def test_a_full_disk_leaves_nothing(client, folder, monkeypatch):
    def full(handle, data):
        os.write(handle, data[:10])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(upload, "_write", full)
    assert error(send(client)) == (507, None, "disk_full")
    assert blobs(folder) == []
    assert client.get("/v1/files").json()["data"] == []


def test_tables_that_cannot_grow_leave_nothing(tmp_path):
    store = Store(tmp_path)
    store._db.execute("PRAGMA max_page_count = 1")
    options = ServerOptions(keeping=Keeping(store))
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL), options)) as client:
        replies = [send(client, name="n" * 250) for _ in range(50)]
        assert replies[0].status_code == 200
        assert error(replies[-1]) == (507, None, "disk_full")
        there = [one["id"] + ".jsonl" for one in client.get("/v1/files").json()["data"]]
        assert sorted(there) == blobs(tmp_path)


def test_without_a_store_the_reason_is_given():
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL))) as client:
        reply = send(client)
        assert error(reply) == (503, None, "not_enabled")
        assert "--data-dir" in reply.json()["error"]["message"]
        assert error(client.get("/v1/batches")) == (503, None, "not_enabled")


def test_each_key_has_its_own(folder):
    keys = Keys(["key-of-one", "key-of-two"])
    options = ServerOptions(keys, keeping=Keeping(Store(folder)))
    one, two = ({"Authorization": f"Bearer key-of-{name}"} for name in ("one", "two"))
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL), options)) as client:
        assert send(client).status_code == 401
        made = send(client, headers=one).json()["id"]
        assert client.get(f"/v1/files/{made}", headers=one).status_code == 200
        for path in (f"/v1/files/{made}", f"/v1/files/{made}/content", f"/v1/files?after={made}"):
            assert client.get(path, headers=two).status_code == 404
        assert client.delete(f"/v1/files/{made}", headers=two).status_code == 404
        assert client.get("/v1/files", headers=two).json()["data"] == []
        assert len(client.get("/v1/files", headers=one).json()["data"]) == 1
    options = ServerOptions(keeping=Keeping(Store(folder)))
    with TestClient(create_app(Bridge(MODEL), ServerInfo(MODEL), options)) as client:
        assert len(client.get("/v1/files").json()["data"]) == 1


def test_a_crash_in_an_upload_is_swept_up(folder):
    Store(folder).close()
    for name in ("file-" + "0" * 32 + ".jsonl", "file-" + "1" * 32 + ".jsonl.part", "mine.txt"):
        (folder / "files" / name).write_bytes(b"x")
    (folder / "batches" / ("batch_" + "0" * 32)).mkdir()
    Store(folder).close()
    assert blobs(folder) == ["mine.txt"]
    assert list((folder / "batches").iterdir()) == []


def test_a_folder_has_one_server(folder):
    store = Store(folder)
    with pytest.raises(StoreError, match="held by process"):
        Store(folder)
    store.close()
    Store(folder).close()


def test_another_version_of_the_tables_is_refused(folder):
    store = Store(folder)
    store._db.execute("PRAGMA user_version = 7")
    store.close()
    with pytest.raises(StoreError, match="version 7"):
        Store(folder)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file")
