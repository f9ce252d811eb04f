"""Front doors as a shell starts them: flags in; exit code, stdout and stderr out.

A fork server that imported the libraries once gives each call a process of its own in milliseconds.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_SECONDS = 120.0
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["tpuinfer.engine.llm", "tpuinfer.flags", "tpuinfer.server.app", "tpuinfer.server.listen"]
)


@dataclass(frozen=True)
class Result:
    """How a front door ended; `code` is negative for a signal."""

    code: int
    out: str
    err: str


class Door:
    """A front door that runs, with its streams in the files 0, 1 and 2 of a folder."""

    def __init__(self, process: ForkServerProcess, folder: Path) -> None:
        self._process = process
        self._folder = folder

    @property
    def out(self) -> str:
        return (self._folder / "1").read_text("utf-8")

    @property
    def err(self) -> str:
        return (self._folder / "2").read_text("utf-8")

    def line_with(self, text: str) -> str:
        """The line of stderr that holds `text`, once it is there."""
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end and self._process.is_alive():
            for line in self.err.splitlines(keepends=True):
                if text in line and line.endswith("\n"):
                    return line.rstrip("\n")
            time.sleep(0.05)
        raise AssertionError(f"no {text!r} in stderr: {self.err}")

    def send(self, signal: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal)

    def result(self) -> Result:
        """How it ends, for which it has two minutes."""
        self._process.join(_SECONDS)
        assert self._process.exitcode is not None, f"still running: {self.err}"
        return Result(self._process.exitcode, self.out, self.err)


@contextlib.contextmanager
def started(door: str, *flags: str, stdin: str = "") -> Iterator[Door]:
    """`python -m tpuinfer.<door> <flags>`, without a terminal; killed at the end if need be."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("0", stdin), ("1", ""), ("2", "")):
            Path(folder, name).write_text(text, "utf-8")
        process = _SERVER.Process(target=_enter, args=(door, flags, folder))
        process.start()
        try:
            yield Door(process, Path(folder))
        finally:
            process.kill()
            process.join()
            process.close()


def run(door: str, *flags: str, stdin: str = "") -> Result:
    """What `python -m tpuinfer.<door> <flags>` does."""
    with started(door, *flags, stdin=stdin) as running:
        return running.result()


def _enter(door: str, flags: tuple[str, ...], folder: str) -> None:
    for fd, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        os.dup2(os.open(Path(folder, str(fd)), mode), fd)
    sys.argv = [door, *flags]
    with open(0, encoding="utf-8", closefd=False) as sys.stdin:  # it was /dev/null
        runpy.run_module(f"tpuinfer.{door}", run_name="__main__", alter_sys=True)
