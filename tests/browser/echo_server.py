"""A real server on a loopback port whose fake model says what it was told.

The answer to "abc" is "abc"; a message that ends with "~" is said again and again, to the end of
the context.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import pytest

from tpuinfer.engine.engine import Engine
from tpuinfer.server.access import Keys
from tpuinfer.server.app import ServerOptions, create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.server.listen import bind, serve
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

MODEL = "echo"
SLOTS = 4
CONTEXT = 4096

_QUESTION = [ord(letter) for letter in "user:"]
_ANSWER = [ord(letter) for letter in "\nassistant:"]


def echo(tokens: Sequence[int], shift: int) -> int:
    """The next character of the last question, or the end token after it."""
    start = _last(tokens, _QUESTION, len(tokens)) + len(_QUESTION)
    end = _last(tokens, _ANSWER, len(tokens))
    question, said = tokens[start:end], len(tokens) - end - len(_ANSWER)
    if question[-1] == ord("~"):
        return question[said % len(question)]
    return question[said] if said < len(question) else 0


def _last(tokens: Sequence[int], word: Sequence[int], end: int) -> int:
    """Where `word` stands for the last time."""
    return next(
        at for at in range(end - len(word), -1, -1) if list(tokens[at : at + len(word)]) == word
    )


class EchoServer:
    """A running server.

    Attributes:
      url: where. runner: the fake model; `runner.seconds` slows it down.

    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.runner = FakeRunner(slots=SLOTS, capacity=CONTEXT, rule=echo)
        self.engine = Engine(self.runner, FakeTokenizer(), max_waiting=100)
        self.bridge = Bridge(MODEL)

    def load(self) -> None:
        """End the time of "still loading"."""
        self.bridge.attach(self.engine, FakeTokenizer())

    @property
    def running(self) -> int:
        return self.engine.metrics.running


class _OverError(Exception):
    """Ends `serve` when the tests are over."""


@contextlib.contextmanager
def echo_server(*, loaded: bool = True, keys: Sequence[str] = ()) -> Iterator[EchoServer]:
    """Serve those who have one of `keys`, or everyone when there are none.

    Without `loaded` the server says that it is loading until `load` is called.
    """
    listener = bind("127.0.0.1", 0)
    server = EchoServer(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    options = ServerOptions(keys=Keys(api=keys))
    app = create_app(server.bridge, ServerInfo(MODEL), options)
    over = threading.Event()
    if loaded:
        server.load()

    def hold() -> None:
        over.wait(120)
        raise _OverError

    def run() -> None:
        with pytest.raises(_OverError):
            serve(app, listener, "warning", hold)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        thread.join(10)
    assert not thread.is_alive()
