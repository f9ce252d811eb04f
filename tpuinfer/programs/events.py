"""What jax says while it compiles, heard by the thread that compiles.

The names of jax.monitoring's events are the same from jax 0.10 to 0.12; should they ever change,
this is the place.
"""

import threading
from types import TracebackType
from typing import Self

from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class _Thread(threading.local):
    """The hearings that are open in a thread, the innermost last."""

    def __init__(self) -> None:
        self.open: list[Hearing] = []


_thread = _Thread()


class Hearing:
    """`with Hearing() as heard:` what this thread compiles in the block. The innermost one hears.

    Attributes:
      compiled: names of the functions that were compiled, or read from the compilation cache.
      asked: how many compiles asked the compilation cache, whether or not it has a folder.
      hits: how many were found in it.
    """

    __slots__ = ("asked", "compiled", "hits")

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.asked = 0
        self.hits = 0

    def __enter__(self) -> Self:
        _thread.open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _thread.open.remove(self)


def _on_duration(event: str, duration_secs: float, **facts: str | int) -> None:
    if event == _COMPILED and _thread.open:
        _thread.open[-1].compiled.append(str(facts.get("fun_name", "a function without a name")))


def _on_event(event: str, **facts: str | int) -> None:
    if not _thread.open:
        return
    if event == _CACHE_ASKED:
        _thread.open[-1].asked += 1
    elif event == _CACHE_HIT:
        _thread.open[-1].hits += 1


monitoring.register_event_duration_secs_listener(_on_duration)
monitoring.register_event_listener(_on_event)
