"""Calls of `LLM.generate` that share one engine: each hears of its own requests only. No jax.

A call adds prompts, advances the engine, and takes the answers in the order of the prompts. Several
may be open at once, such as two iterators, or a call from within `on_delta`: whoever advances the
engine advances all of them, and what it says of another's requests waits until that one looks.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.gather import Gathered
from tpuinfer.engine.request import Delta, Request, RequestOutput

Listener = Callable[[int, Delta], None]
"""Called with the index of a prompt in its call, and what is new about it."""


class Asked(NamedTuple):
    """One prompt, as text where it was, and the requests that answer it."""

    text: str | None
    requests: Sequence[Request]


class Calls:
    """One engine, and the calls that are open on it. Everything must come from one thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inboxes: dict[str, deque[Delta]] = {}
        self._open = 0

    @property
    def busy(self) -> bool:
        """Whether a call is open."""
        return self._open > 0

    @contextmanager
    def open(self, on_delta: Listener | None) -> Iterator["Call"]:
        """A new call; what it has not taken when it is left is aborted."""
        call = Call(self, on_delta)
        self._open += 1
        try:
            yield call
        finally:
            self._open -= 1
            call.close()

    def add(self, request: Request, inbox: deque[Delta]) -> None:
        """Have the engine answer a request into an inbox; raises like `Engine.add`."""
        self.engine.add(request)
        self._inboxes[request.request_id] = inbox

    def abort(self, request_id: str) -> None:
        """Forget a request, which may have ended."""
        if self._inboxes.pop(request_id, None) is not None:
            self.engine.abort(request_id)

    def step(self) -> None:
        """One engine step."""
        for delta in self.engine.step():
            self._inboxes[delta.request_id].append(delta)
            if delta.finish_reason is not None:
                del self._inboxes[delta.request_id]


class Call:
    """The prompts of one call that have been added, and not taken yet.

    Attributes:
      held: how many answers these are.
    """

    def __init__(self, calls: Calls, on_delta: Listener | None) -> None:
        self.held = 0
        self._calls = calls
        self._on_delta = on_delta
        self._added = 0
        self._inbox: deque[Delta] = deque()
        self._line: deque[Gathered] = deque()  # in the order added
        self._growing: dict[str, Gathered] = {}  # by request

    def add(self, asked: Asked) -> None:
        """Have one more prompt answered.

        Raises:
          RequestError: it cannot be served, and no part of it is.
        """
        gathered = Gathered(self._added, *asked)
        for count, request in enumerate(asked.requests):
            try:
                self._calls.add(request, self._inbox)
            except BaseException:
                for earlier in asked.requests[:count]:
                    self._forget(earlier.request_id)
                raise
            self._growing[request.request_id] = gathered
        self._line.append(gathered)
        self._added += 1
        self.held += len(asked.requests)

    def advance(self) -> None:
        """Hear what is new, after an engine step if nothing is."""
        if not self._inbox:
            self._calls.step()
        while self._inbox:
            delta = self._inbox.popleft()
            gathered = self._growing[delta.request_id]
            gathered.hear(delta)
            if delta.finish_reason is not None:
                del self._growing[delta.request_id]
            if self._on_delta is not None:
                self._on_delta(gathered.index, delta)

    def take(self) -> RequestOutput | None:
        """The answer to the first prompt that is held, once it is whole."""
        if not self._line or not self._line[0].output.finished:
            return None
        output = self._line.popleft().output
        self.held -= len(output.outputs)
        return output

    def close(self) -> None:
        """Abort what is running."""
        for request_id in list(self._growing):
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._calls.abort(request_id)
        del self._growing[request_id]


def answer_all(
    calls: Calls, asked: Sequence[Asked], on_delta: Listener | None
) -> list[RequestOutput]:
    """The answers to some prompts; if one of them cannot be served, none is.

    Raises:
      RequestError: one cannot be served.
    """
    outputs = []
    with calls.open(on_delta) as call:
        for one in asked:
            call.add(one)
        while call.held:
            if (output := call.take()) is not None:
                outputs.append(output)
            else:
                call.advance()
    return outputs


def stream(
    calls: Calls, asked: Iterator[Asked], on_delta: Listener | None
) -> Generator[RequestOutput, None, None]:
    """The answers to prompts in their order, each as soon as those before it are out.

    Prompts are read ahead while fewer than `window` answers are held, at most as many as there are
    slots before each step, so that the first ones need not wait for a source that is slow. What
    cannot be read or served is raised when the answers before it are out; nothing is read after it.
    """
    slots = calls.engine.metrics.slots
    failure: Exception | None = None
    more = True
    with calls.open(on_delta) as call:
        while call.held or more:
            for _ in range(slots):
                if not more or call.held >= window(slots):
                    break
                try:
                    call.add(next(asked))
                except StopIteration:
                    more = False
                except Exception as error:
                    failure, more = error, False
            if (output := call.take()) is not None:
                yield output
            elif call.held:
                call.advance()
    if failure is not None:
        raise failure


def window(slots: int) -> int:
    """Answers that `stream` holds at most, running, waiting or whole, unless one prompt has more.

    Enough that a long answer, for which those behind it must wait, leaves no slot empty.
    """
    return max(64, 8 * slots)
