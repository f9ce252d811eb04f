"""Listening: the address is taken before a model is loaded, and given back on SIGTERM."""

import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from tpuinfer.server.failures import ListenError

_log = logging.getLogger(__name__)

BACKLOG = 2048
GRACE_SECONDS = 30
"""How long open answers may go on after SIGTERM."""

_NEAR_PORTS = 20


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    It listens at once, not only when the server runs: two processes may bind the same address, but
    only one may listen, and the other must hear of it before it loads a model.

    Raises:
      ListenError: the port is taken, not allowed, or out of range, or the host is not of here.

    """
    if not 0 <= port <= 65535:
        raise ListenError(
            f"port is {port}: it must be in [0, 65535]; nearest: {0 if port < 0 else 65535}"
        )
    try:
        return _listening(host, port)
    except socket.gaierror as error:
        raise ListenError(f"host is {host!r}: {error.strerror}; try 127.0.0.1 or ::") from error
    except OSError as error:
        raise ListenError(_why_not(host, port, error)) from error


def serve(
    app: ASGIApp,
    listener: socket.socket,
    log_level: str = "info",
    load: Callable[[], None] | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT, then let open answers end and return.

    `load` runs on a thread of its own while the server already says "not ready"; what it raises
    stops the server and is raised here.
    """
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    failures: list[BaseException] = []

    def load_or_stop() -> None:
        assert load is not None
        try:
            load()
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    if load is not None:
        threading.Thread(target=load_or_stop, name="load", daemon=True).start()
    with _quiet_signals(), listener:
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """Uvicorn raises a signal again once it has obeyed it; that must not kill the caller."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in asked}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda one: one[0] != socket.AF_INET)  # localhost is 127.0.0.1 before ::1
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port is {port}: another process listens on it; {_nearest_free(host, port)}"
        case errno.EACCES:
            return f"port is {port}: this user may not listen below 1024; nearest: 1024"
        case errno.EADDRNOTAVAIL:
            return f"host is {host!r}: not an address of this machine; try 127.0.0.1 or 0.0.0.0"
        case _:
            return f"cannot listen on {host} port {port}: {error.strerror}"


def _nearest_free(host: str, port: int) -> str:
    for near in range(port + 1, min(port + _NEAR_PORTS, 65535) + 1):
        with contextlib.suppress(OSError), _listening(host, near):
            return f"nearest free: {near}"
    return "port 0 takes any that is free"
