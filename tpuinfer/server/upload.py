"""From the body of an upload to a file on disk, as it comes: whole and durable, or not there."""

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fastapi import Request
from starlette.requests import ClientDisconnect

from tpuinfer.server.failures import ApiError
from tpuinfer.server.form import Check, Form
from tpuinfer.server.receive import BODY_SECONDS

_WRITE_BYTES = 2**20
_AROUND_BYTES = 2**16
"""Of a form, beside the file in it."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


async def received(http: Request, path: Path, part: Path, most: int, check: Check) -> Form:
    """Read a form and put its file at `path`; until it is whole, it is at `part`.

    Args:
      most: bytes that the file may have.
      check: is shown every field but the file.

    Raises:
      ApiError: 400 for what is no such form, 408 and 413 for one that is too slow or too large, 507
        if the disk is full. Nothing is left behind.
    """
    declared = http.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > most + _AROUND_BYTES:
        raise _too_large(most)
    form = Form(http.headers.get("content-type", ""), check)
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with room():
        try:
            handle = await asyncio.to_thread(os.open, part, how, 0o600)
            try:
                await _fill(http, form, handle, most)
                await asyncio.to_thread(_settle, handle, part, path)
            finally:
                os.close(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    return form


@contextlib.contextmanager
def room() -> Iterator[None]:
    """Turns a full disk into an ApiError, 507."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if not full and getattr(error, "errno", None) not in _FULL:
            raise
        message = "the disk is full: delete files that are not needed"
        raise ApiError(507, message, kind="server_error", code="disk_full") from None


async def _fill(http: Request, form: Form, handle: int, most: int) -> None:
    size = around = 0
    async for piece in _pieces(http):
        before = len(form.pending)
        form.feed(piece)
        grown = len(form.pending) - before
        size += grown
        around += len(piece) - grown
        if size > most:
            raise _too_large(most)
        if around > _AROUND_BYTES + size // 64:
            raise ApiError(400, "the form has more than a file in it", code="invalid_body")
        if len(form.pending) >= _WRITE_BYTES:
            await asyncio.to_thread(_write, handle, form.pending)
    form.end()
    await asyncio.to_thread(_write, handle, form.pending)


async def _pieces(http: Request) -> AsyncIterator[bytes]:
    """The body as it comes; raises ApiError when it stops coming."""
    stream = http.stream()
    try:
        while True:
            async with asyncio.timeout(BODY_SECONDS):
                piece = await anext(stream, None)
            if piece is None:
                return
            yield piece
    except ClientDisconnect:
        raise ApiError(400, "the client left in the middle of the body", code="gone") from None
    except TimeoutError:
        message = f"the body stopped: nothing came for {BODY_SECONDS:g} s"
        headers = {"Connection": "close"}
        raise ApiError(408, message, code="request_timeout", headers=headers) from None


def _write(handle: int, data: bytearray) -> None:
    """All of it, and none stays."""
    while data:
        written = os.write(handle, data)
        del data[:written]


def _settle(handle: int, part: Path, path: Path) -> None:
    """Durable under its own name."""
    os.fsync(handle)
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _too_large(most: int) -> ApiError:
    message = f"the file is too large: at most {most} bytes; split it"
    return ApiError(413, message, code="body_too_large")
