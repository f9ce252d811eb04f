"""Listening: the address is taken before a model is loaded, and given back on SIGTERM."""

import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from tpuinfer.server.failures import ListenError
from tpuinfer.server.wire import BoundedProtocol

_log = logging.getLogger(__name__)

BACKLOG = 2048
GRACE_SECONDS = 30
"""How long open answers may go on after SIGTERM."""

KEEP_ALIVE_SECONDS = 75
"""How long a connection may wait for its next request: longer than proxies usually keep theirs."""

_NEAR_PORTS = 20


class Drained(Protocol):
    """Who answers requests; `Bridge` does."""

    @property
    def idle(self) -> bool: ...

    def drain(self) -> None: ...


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
    bridge: Drained | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT, then let open answers end and return.

    Args:
      load: runs on a thread of its own while the server already says "not ready"; what it raises
        stops the server and is raised here.
      bridge: is drained first: while its answers end, new requests are told so, for the port is
        open still. A second signal does not wait for them.
    """
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=False,
        lifespan="on",
        http=BoundedProtocol,
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _DrainingServer(config, bridge)
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


class _DrainingServer(uvicorn.Server):
    """Drains at the first signal; exits when that is done, takes too long, or at the second."""

    def __init__(self, config: uvicorn.Config, bridge: Drained | None) -> None:
        super().__init__(config)
        self._bridge = bridge
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._bridge is None or self._deadline is not None:
            super().handle_exit(sig, frame)
        else:
            self._deadline = time.monotonic() + GRACE_SECONDS

    async def on_tick(self, counter: int) -> bool:
        if self._bridge is not None and self._deadline is not None:
            self._bridge.drain()
            if self._bridge.idle or time.monotonic() > self._deadline:
                self.should_exit = True
        return await super().on_tick(counter)


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
