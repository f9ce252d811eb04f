"""What the tests of the server share: an engine on the fake runner, and a gate in its way."""

import threading
from typing import Any

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Delta
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

MODEL = "fake"
CONTEXT = 64


def fake_engine(**settings: Any) -> Engine:
    """An engine on `FakeRunner`; `max_waiting` is the engine's, the rest the runner's."""
    waiting = settings.pop("max_waiting", 100)
    runner = FakeRunner(**{"slots": 4, "capacity": CONTEXT} | settings)
    return Engine(runner, FakeTokenizer(), max_waiting=waiting)


class Gate:
    """In the way of an engine's steps: while it is shut, the engine thread waits in one.

    Attributes:
      fail: what the next step raises.
      steps: how many there were. waiting: the engine thread stands before the gate.

    """

    def __init__(self, engine: Engine) -> None:
        self._step = engine.step
        self._open = threading.Event()
        self._open.set()
        self.fail: Exception | None = None
        self.steps = 0
        self.waiting = False
        engine.step = self.step  # type: ignore[method-assign]

    def step(self) -> list[Delta]:
        self.waiting = not self._open.is_set()
        assert self._open.wait(10), "nobody opened the gate"
        self.waiting = False
        self.steps += 1
        if self.fail is not None:
            raise self.fail
        return self._step()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()
