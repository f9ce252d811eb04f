import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest
from served import MODEL

from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.failures import ListenError
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import bind, serve

PROGRAM = """
from tpuinfer.server.app import create_app
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.listen import bind, serve

listener = bind("127.0.0.1", 0)
app = create_app(Bridge("fake"), ServerInfo("fake"))
serve(app, listener, "warning", load=lambda: print(listener.getsockname()[1], flush=True))
print("done", flush=True)
"""


def test_a_taken_port_is_named_with_the_next_free_one():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=f"port is {port}: another process.*nearest") as info:
            bind("127.0.0.1", port)
    assert info.value.exit_code == 7
    with bind("127.0.0.1", port):
        pass


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", -1, r"port is -1: it must be in \[0, 65535\]; nearest: 0"),
        ("127.0.0.1", 70000, "nearest: 65535"),
        ("192.0.2.1", 0, "host is '192.0.2.1': not an address of this machine"),
        ("no host", 0, "host is 'no host': "),
    ],
)
def test_an_address_that_cannot_be_had(host, port, message):
    with pytest.raises(ListenError, match=message):
        bind(host, port)


def test_a_load_that_fails_stops_the_server():
    def load() -> None:
        raise MemoryError("too big")

    listener = bind("127.0.0.1", 0)
    with pytest.raises(MemoryError, match="too big"):
        serve(create_app(Bridge(MODEL), ServerInfo(MODEL)), listener, "warning", load)
    assert listener.fileno() == -1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_answers_while_it_loads():
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/health"
    asked = threading.Event()
    replies = []

    def ask() -> None:
        with urllib.request.urlopen(url, timeout=5) as reply:
            replies.append(reply.status)
        asked.set()

    def load() -> None:
        assert asked.wait(5), "the server did not answer"
        raise InterruptedError

    threading.Thread(target=ask).start()
    with pytest.raises(InterruptedError):
        serve(create_app(Bridge(MODEL), ServerInfo(MODEL)), listener, "warning", load)
    assert replies == [200]


def test_sigterm_ends_it_in_order():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        port = int(run.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "done\n"
        assert run.wait(10) == 0
