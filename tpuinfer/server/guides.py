"""Grammars for guided answers: compiled on threads of their own, few at once, and not for ever."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from tpuinfer.engine.request import Constraint
from tpuinfer.errors import RequestError
from tpuinfer.grammar.compiler import GrammarCompiler
from tpuinfer.grammar.guide import Guide
from tpuinfer.server.bridge import Bridge, Tokenizer
from tpuinfer.server.failures import ApiError

COMPILE_SECONDS = 10.0
"""How long a grammar may compile, and how long it may wait for its turn."""

_THREADS = 2
_MOST_WAITING = 64


class Guides:
    """Makes the constraints of requests; belongs to the event loop."""

    def __init__(self, bridge: Bridge, seconds: float = COMPILE_SECONDS) -> None:
        self._bridge = bridge
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammar")
        self._compiler: tuple[Tokenizer, GrammarCompiler] | None = None
        self._pending = 0

    async def constraints(self, guide: Guide | None, count: int) -> list[Constraint | None]:
        """One for each of `count` answers; None for all without a guide.

        Raises:
          RequestError: the guide cannot be followed, or takes too long to compile.
          ApiError: too many others compile already; 503.

        """
        if guide is None:
            return [None] * count
        if self._pending >= _MOST_WAITING:
            raise self._busy()
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        tokenizer, vocab = self._bridge.tokenizer, self._bridge.vocab

        def compile_now() -> list[Constraint]:
            loop.call_soon_threadsafe(begun.set)
            return self._compile(tokenizer, vocab, guide, count)

        self._pending += 1
        work = loop.run_in_executor(self._pool, compile_now)
        work.add_done_callback(self._done)
        try:
            await asyncio.wait_for(begun.wait(), self._seconds)
        except TimeoutError:
            work.cancel()
            raise self._busy() from None
        try:
            return list(await asyncio.wait_for(asyncio.shield(work), self._seconds))
        except TimeoutError:
            message = (
                f"{guide.param} takes longer than {self._seconds:g} s to compile: simplify it, "
                "above all counted repetitions and long lists of alternatives"
            )
            raise RequestError(message, param=guide.param) from None

    def _busy(self) -> ApiError:
        message = f"{self._pending} grammars wait to be compiled: try again"
        headers = {"Retry-After": "1"}
        return ApiError(503, message, kind="server_error", code="queue_full", headers=headers)

    def _done(self, work: "asyncio.Future[list[Constraint]]") -> None:
        self._pending -= 1
        if not work.cancelled():
            work.exception()  # whoever asked may be gone

    def _compile(
        self, tokenizer: Tokenizer, vocab: int, guide: Guide, count: int
    ) -> list[Constraint]:
        if self._compiler is None or self._compiler[0] is not tokenizer:
            self._compiler = tokenizer, GrammarCompiler(tokenizer, vocab)
        grammar = self._compiler[1].compile(guide)
        return [grammar.matcher() for _ in range(count)]
