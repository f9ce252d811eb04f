"""The HTTP connection: uvicorn's, with bounds on what comes before a body.

The parser itself accepts headers without end, and waits for them for ever.
"""

import asyncio
import urllib.parse

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tpuinfer.server.failures import ApiError

MAX_HEADER_BYTES = 64 * 2**10
"""Bytes of a request's line and headers together, names and values alone."""

HEADER_SECONDS = 20.0
"""How long a client may take to send them, from its connection or its last answer on."""

MAX_DISCARDED_BYTES = 32 * 2**20
"""Bytes of a body that may follow its answer, so that a client that writes first can read it."""

_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to headers that are too large, and hangs up on those that never end."""

    _header_bytes = 0
    _discarded = 0
    _head_timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._discarded = 0
        if self._head_timer is None:
            self._start_head_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        if self._refused:
            return
        try:
            urllib.parse.unquote(self.url.decode("ascii"), errors="strict")
        except UnicodeDecodeError:
            self._refuse(ApiError(400, "the path is not valid UTF-8", code="invalid_url"))
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > MAX_DISCARDED_BYTES:
                self._refused = True
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refuse(ApiError(400, "the request is not valid HTTP", code="invalid_http"))

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES and not self._refused:
            message = f"the headers are too large: at most {MAX_HEADER_BYTES} bytes"
            self._refuse(ApiError(431, message, code="headers_too_large"))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        """Only where no answer is under way: pipelined heads wait for it too."""
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_head_timer()
        elif not self._refused and not self.transport.is_closing():
            message = f"the headers took longer than {HEADER_SECONDS:g} s"
            self._refuse(ApiError(408, message, code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer below the application, and read nothing more from this client."""
        self._refused = True
        body = error.body()
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n" % (
            error.status,
            _REASONS[error.status],
        )
        head += b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(head + body)
        self.transport.close()
