"""What only a real connection shows: bounds on headers, bodies that lie, and slow clients."""

import socket
import threading
import time

import pytest
from served import MODEL, Gate, fake_engine
from wired import Wired

from tpuinfer.server import wire
from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import _DrainingServer
from tpuinfer.server.receive import MAX_BODY_BYTES

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000, 431, b"headers_too_large"),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 40_000, 431, b"headers_too_large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x", 431, b"headers_too_large"),
        (b"GET /%ff HTTP/1.1\r\nHost: x", 400, b"invalid_url"),
        (b"nonsense", 400, b"invalid_http"),
        (b"GET /none HTTP/1.1\r\nHost: x", 404, b"not_found"),
    ],
    ids=["one header", "many headers", "path", "path no text", "no http", "no route"],
)
def test_what_is_wrong_before_a_body(uvicorn_server, head, status, code):
    got = uvicorn_server.ask(uvicorn_server(), head + b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert b'"code":"%s"' % code in got


def test_a_chunked_body_is_counted_on_the_wire(uvicorn_server):
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    pieces = [chunk] * (MAX_BODY_BYTES // 2**20 + 1)
    got = uvicorn_server.ask(
        uvicorn_server(), POST + b"Transfer-Encoding: chunked\r\n\r\n", *pieces
    )
    assert got.startswith(b"HTTP/1.1 413 ")


def test_a_body_beyond_its_length_is_another_request(uvicorn_server):
    got = uvicorn_server.ask(uvicorn_server(), POST + b"Content-Length: 2\r\n\r\n{}garbage\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_never_stops_writing_is_cut_off(uvicorn_server):
    """The answer comes after 32 MiB; what follows is thrown away, but not for ever."""
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    with socket.create_connection(("127.0.0.1", uvicorn_server()), 10) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(2 * MAX_BODY_BYTES // 2**20 + 64):
                connection.sendall(chunk)


def test_headers_that_never_end(uvicorn_server, monkeypatch):
    monkeypatch.setattr(wire, "HEADER_SECONDS", 0.2)
    for started in (b"", b"GET /health HTTP/1.1\r\nHost"):
        got = uvicorn_server.ask(uvicorn_server(), started)
        assert got.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_stops(uvicorn_server, monkeypatch):
    monkeypatch.setattr("tpuinfer.server.receive.BODY_SECONDS", 0.2)
    got = uvicorn_server.ask(uvicorn_server(), POST + b"Content-Length: 20\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 408 ")


def test_a_server_that_drains_answers_what_it_has_and_refuses_the_rest():
    import json

    import uvicorn

    from tpuinfer.server.listen import bind
    from tpuinfer.testing.fake import FakeTokenizer

    engine, bridge = fake_engine(), Bridge(MODEL)
    gate = Gate(engine)
    bridge.attach(engine, FakeTokenizer())
    app = create_app(bridge, ServerInfo(MODEL))
    server = _DrainingServer(uvicorn.Config(app, log_level="error", access_log=False), bridge)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    client = Wired(app)
    gate.shut()
    body = json.dumps({"model": MODEL, "prompt": "a"}).encode()
    posted = client.post(port, "/v1/completions", body)
    until(lambda: gate.waiting)
    server.handle_exit(15, None)
    until(lambda: client.get(port, "/ready").startswith(b"HTTP/1.1 503"))
    late = client.post(port, "/v1/completions", body)
    late.join()
    gate.open()
    posted.join()
    thread.join(10)
    assert client.status == [503, 200]
    assert not thread.is_alive()


def until(true):
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
