"""The chat page's files as they are served; tests/browser clicks on them."""

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tpuinfer.server.page import page_router


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(page_router())
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def paths(client) -> list[str]:
    """The page and all that it and its modules refer to."""
    found = ["/"] + [f"/{one}" for one in re.findall(r'"(page/[^"]+)"', client.get("/").text)]
    scripts = [one for one in found if one.endswith(".js")]
    for script in scripts:
        found += [f"/page/{one}" for one in re.findall(r'from "\./(.+?)"', client.get(script).text)]
    return sorted(set(found))


def test_everything_the_page_refers_to_is_there(client, paths):
    kinds = {path: client.get(path).headers["content-type"].partition(";")[0] for path in paths}
    assert kinds.pop("/") == "text/html"
    assert kinds.pop("/page/style.css") == "text/css"
    assert {"/page/chat.js", "/page/markdown.js"} <= kinds.keys()
    assert set(kinds.values()) == {"text/javascript"}
    assert {client.get(path).status_code for path in paths} == {200}


def test_every_module_is_asked_for_at_once(client, paths):
    """Else a browser finds them one after another."""
    page = client.get("/").text
    assert [path for path in paths if path.endswith(".js") and path[1:] not in page] == []


def test_nothing_may_come_from_elsewhere(client, paths):
    for path in paths:
        reply = client.get(path)
        own = reply.text.replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|innerHTML|\bstyle=|\bon\w+=\"", own) == [], path
        policy = reply.headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_what_a_browser_has_is_not_sent_again(client):
    first = client.get("/page/chat.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/page/chat.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/page/chat.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_has_no_body(client):
    reply = client.head("/")
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["content-length"]) == len(client.get("/").content)


@pytest.mark.parametrize("name", ["index.html", "nothing.js", "..%2Fpage.py", "%2e%2e/app.py"])
def test_nothing_else_is_served(client, name):
    assert client.get(f"/page/{name}").status_code == 404
