"""What is known of one request while it is served: for logs, audit and counters.

The door makes a trail before a route is chosen; whoever learns something adds it. It travels in a
context variable, so the code between need not hand it on.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tpuinfer.engine.request import Delta, Request

_CURRENT: ContextVar["Trail | None"] = ContextVar("trail", default=None)


@dataclass
class Trail:
    """One request, from its first byte to its last: HTTP's, or a line of a batch.

    Attributes:
      request_id: what the client calls it, or a name of our own.
      route: the path pattern that matched; "" while none has.
      key: which key opened the route, as `key_name` writes it; None where none was asked for.
      error: the code of the error that was answered.
      version: of the weights, when the engine took the request.
      start, first, end: seconds, monotonic; `first` is when the first token came.
    """

    request_id: str
    method: str
    path: str
    route: str = ""
    status: int = 0
    model: str | None = None
    key: str | None = None
    error: str | None = None
    version: int | None = None
    prompts: list[Sequence[int]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    first: float | None = None
    end: float | None = None

    def submitted(self, requests: Sequence[Request], version: int) -> None:
        """The engine is about to get these; choices of one prompt share its list of tokens."""
        distinct = {id(request.prompt_token_ids): request.prompt_token_ids for request in requests}
        self.prompts = list(distinct.values())
        self.prompt_tokens = sum(map(len, self.prompts))
        self.version = version

    def add(self, delta: Delta) -> None:
        """Tokens came."""
        self.completion_tokens += len(delta.token_ids)
        if self.first is None:
            self.first = time.monotonic()
        if delta.finish_reason is not None:
            self.finish_reasons.append(delta.finish_reason)

    def settled(self, requests: Sequence[Request], gathered: Sequence[Delta]) -> None:
        """All of an answer that took several submissions is there; what was void does not count."""
        self.submitted(requests, self.version or 0)
        self.completion_tokens = sum(len(one.token_ids) for one in gathered)
        self.finish_reasons = [one.finish_reason for one in gathered if one.finish_reason]

    @property
    def seconds(self) -> float:
        """From the first byte to the last, or to now."""
        return (self.end or time.monotonic()) - self.start

    @property
    def ttft(self) -> float | None:
        """From the first byte to the first token; None if there was none."""
        return None if self.first is None else self.first - self.start


@dataclass
class HttpCounts:
    """How HTTP requests ended, since the start.

    Attributes:
      answered: (method, route, status) -> how many. errors: an error's code -> how many.
    """

    answered: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, trail: Trail) -> None:
        """Count a request that has ended. A path that no route knows is not a label."""
        route = trail.route or "none"
        method = trail.method if trail.route else "any"
        self.answered[method, route, str(trail.status)] += 1
        if trail.error is not None:
            self.errors[trail.error] += 1


def current() -> Trail | None:
    """The trail of the request that is being served; None outside of one."""
    return _CURRENT.get()


def begin(trail: Trail) -> None:
    """From here on `current` gives `trail`, in this task and those it starts."""
    _CURRENT.set(trail)


@contextmanager
def during(trail: Trail) -> Iterator[None]:
    """Within, `current` gives `trail`: for what is served beside HTTP."""
    token = _CURRENT.set(trail)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def key_name(key: str) -> str:
    """A name by which an operator who has the key can tell it, and nobody can guess it."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]
