"""Front doors as a shell starts them: argv in; exit code, stdout and stderr out.

A fork server that imported the libraries once gives each call a process of its own in milliseconds.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT = 120.0
_PRELOAD = ["tpuinfer.engine.llm", "tpuinfer.flags", "tpuinfer.server.listen", "doors"]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_PRELOAD)


@dataclass(frozen=True)
class Result:
    """How a front door ended; `code` is negative for a signal."""

    code: int
    out: str
    err: str


def run(door: str, *flags: str, stdin: str = "") -> Result:
    """`python -m tpuinfer.<door> <flags>`, without a terminal."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "0").write_text(stdin, "utf-8")
        child = _SERVER.Process(target=_enter, args=(door, flags, folder))
        child.start()
        child.join(_TIMEOUT)
        if child.exitcode is None:
            child.kill()
            child.join()
        out, err = (Path(folder, name).read_text("utf-8") for name in "12")
        assert child.exitcode is not None
        return Result(child.exitcode, out, err)


def _enter(door: str, flags: tuple[str, ...], folder: str) -> None:
    for fd, how in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(Path(folder, str(fd)), how), fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # multiprocessing had put /dev/null here
    sys.argv = [door, *flags]
    runpy.run_module(f"tpuinfer.{door}", run_name="__main__", alter_sys=True)
