"""A real server on a real port, and clients that write bytes."""

import socket
import threading
from typing import Any

import uvicorn

from tpuinfer.server.listen import bind
from tpuinfer.server.wire import BoundedProtocol


class Wired:
    """Calling it starts the server; `stop` ends what was started.

    Attributes:
      status: of the posts that were answered.
    """

    def __init__(self, app: Any) -> None:
        self.status: list[int] = []
        self._app = app
        self._running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def __call__(self) -> int:
        listener = bind("127.0.0.1", 0)
        config = uvicorn.Config(
            self._app, log_level="error", access_log=False, http=BoundedProtocol, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        self._running.append((server, thread))
        return int(listener.getsockname()[1])

    def stop(self) -> None:
        for server, thread in self._running:
            server.should_exit = True
            thread.join()

    def ask(self, port: int, *pieces: bytes) -> bytes:
        """Write all of it, and read until the server hangs up or has answered in full."""
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return _answer(connection)

    def get(self, port: int, path: str) -> bytes:
        return self.ask(
            port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )

    def post(self, port: int, path: str, body: bytes) -> threading.Thread:
        """A thread that posts JSON and notes the status."""
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"

        def run() -> None:
            self.status.append(int(self.ask(port, head.encode(), body)[9:12]))

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def _answer(connection: socket.socket) -> bytes:
    got = b""
    while piece := connection.recv(2**16):
        got += piece
        head, end, rest = got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and length and len(rest) >= int(length):
            break
    return got
