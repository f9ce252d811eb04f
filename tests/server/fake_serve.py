"""`python -m tpuinfer.serve` on the fake engine: a real process, to be killed and started again.

The fake's own flags come before the server's.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import openai

SLOTS, CAPACITY = 8, 4096

FLAGS = {"--fake-model": "fake", "--fake-wait": "0"}
"""What the model is known by, and how many seconds each dispatch takes."""


class Process:
    """A server that listens; `url` is where. It writes its log to the end of `log`."""

    def __init__(self, log: Path, *flags: str) -> None:
        command = [sys.executable, __file__, *flags, "--model=fake", "--port=0"]
        self._log, self._start = log, log.stat().st_size if log.exists() else 0
        with log.open("a") as out:
            self._process = subprocess.Popen(command, stderr=out)
        deadline = time.monotonic() + 20
        while not (found := re.search(r"listening on (http://\S+),", self.said)):
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)
        self.url = found[1]

    @property
    def said(self) -> str:
        """Its log so far."""
        return self._log.read_text("utf-8")[self._start :]

    def client(self) -> openai.OpenAI:
        """Patient while the model is loading."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=5, timeout=20)

    def kill(self) -> None:
        """SIGKILL; again does nothing."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        return self._process.wait(timeout=15)


def main(argv: list[str]) -> None:
    """Serve, with `FLAGS` before the server's own flags."""
    said = dict(FLAGS)
    while argv and argv[0].partition("=")[0] in FLAGS:
        name, _, value = argv.pop(0).partition("=")
        said[name] = value
    from tpuinfer import flags, serve

    flags.load_to_serve = _loaded(float(said["--fake-wait"]))
    # In the place of the module: importing that one takes longer than all the rest.
    sys.modules["tpuinfer.engine.identity"] = _naming(said["--fake-model"])
    sys.argv[1:] = argv
    flags.run(serve.main)


def _loaded(wait: float) -> Callable[..., Any]:
    def load(*_: Any, **__: Any) -> Any:
        from tpuinfer.engine.engine import Engine
        from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

        runner = FakeRunner(slots=SLOTS, capacity=CAPACITY)
        runner.seconds = wait
        engine = Engine(runner, FakeTokenizer(), max_waiting=1000)
        return SimpleNamespace(engine=engine, tokenizer=FakeTokenizer(), plan=None)

    return load


def _naming(name: str) -> ModuleType:
    module = ModuleType("tpuinfer.engine.identity")
    module.identity = lambda *_, **__: {"fingerprint": name}  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    main(sys.argv[1:])
