"""The audit log: who asked which weights for how much, one line of JSON each. Opt-in."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from tpuinfer.errors import ConfigError
from tpuinfer.server.trail import Trail
from tpuinfer.server.writer import Writer


class Audit:
    """Appends to a file that only its owner may read; prompts go in if asked only.

    Raises ConfigError if the file cannot be opened.
    """

    def __init__(self, path: Path, decode: Callable[[list[int]], str] | None = None) -> None:
        """`decode`: token ids to text; None leaves prompts out."""
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"audit-log is {str(path)!r}: cannot be written ({error.strerror})"
            ) from error
        self._file = open(handle, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._decode = decode
        self._writer = Writer(self._write, "audit log")

    def __call__(self, trail: Trail) -> None:
        """Note a request that has ended, if the model was asked for something."""
        if trail.model is not None or trail.route.startswith("/admin/"):
            at = time.time()
            self._writer.put(lambda: self._line(trail, at))

    def close(self) -> None:
        """Write what waits and close the file."""
        self._writer.close()
        self._file.close()

    def _line(self, trail: Trail, at: float) -> str:
        said: dict[str, Any] = {
            "time": round(at, 3),
            "request_id": trail.request_id,
            "key": trail.key,
            "route": trail.route,
            "status": trail.status,
            "model": trail.model,
            "version": trail.version,
            "prompt_tokens": trail.prompt_tokens,
            "completion_tokens": trail.completion_tokens,
            "finish_reasons": trail.finish_reasons,
        }
        if self._decode is not None:
            said["prompts"] = [self._decode(list(ids)) for ids in trail.prompts]
        return orjson.dumps(said).decode()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
