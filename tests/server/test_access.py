"""Every route of the application, asked with and without keys."""

import pytest
from served import MODEL
from starlette.testclient import TestClient

from tpuinfer.errors import ConfigError
from tpuinfer.server.access import OPEN, Keys
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.info import ServerInfo

KEYS = Keys(api=("first-key", "second-key"), admin=("admin-key",))


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def locked(bridge):
    with TestClient(create_app(bridge, ServerInfo(MODEL), ServerOptions(keys=KEYS))) as client:
        yield client


def test_every_route_but_the_open_ones_needs_a_key(locked):
    paths = locked.get("/openapi.json", headers=bearer("first-key")).json()["paths"]
    assert {"/health", "/ready"} < set(paths)
    for path, methods in {**paths, "/openapi.json": {"get": {}}}.items():
        for method in methods:
            reply = locked.request(method, path.replace("{model}", MODEL))
            assert (reply.status_code == 401) == (path not in OPEN), (method, path)
    assert locked.get("/").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("third-key"),
        bearer(""),
        bearer("first-ke"),
        bearer("first-key2"),
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": b"Bearer f\xefrst-key"},
    ],
)
def test_a_key_that_does_not_fit_is_a_401(locked, headers):
    reply = locked.get("/v1/models", headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert reply.json()["error"]["code"] == "invalid_api_key"


def test_each_key_opens_the_api_and_no_api_key_the_admin_routes(locked):
    for key in (*KEYS.api, *KEYS.admin):
        assert locked.get("/v1/models", headers=bearer(key)).status_code == 200
    for key in KEYS.api:
        reply = locked.post("/admin/profile", json={}, headers=bearer(key))
        assert reply.status_code == 401
    reply = locked.post("/admin/profile", json={}, headers=bearer("admin-key"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_enabled")


def test_the_key_is_asked_for_before_the_body_is_read(locked):
    reply = locked.post("/v1/completions", content=b"{", headers={"Content-Type": "x/y"})
    assert reply.status_code == 401


def test_without_keys_the_api_is_open_and_the_admin_routes_are_not(client):
    assert client.get("/v1/models").status_code == 200
    reply = client.post("/admin/reload", json={"path": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "no_admin_key")


@pytest.mark.parametrize("key", ["short", "w\xefth-umlaut", " with-space", "new\nline-key"])
def test_keys_that_cannot_work_are_refused(key):
    with pytest.raises(ConfigError, match="a key has"):
        Keys(api=[key])
