"""The one thread that touches the engine, and the way between it and the event loop.

Handlers run on the event loop and never call the engine. They leave commands (admit, abort) that
the engine thread obeys between two steps; what a step produced comes back in one call into the
loop, however many requests it is for:

    event loop                                engine thread
    submit -> commands ----------------------> obey: engine.add, engine.abort
    _deliver(all deltas of a step) <---------- engine.step
       `-> Answers of each request             (asleep while there is no work)
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.metrics import Metrics
from tpuinfer.engine.request import Delta, Request
from tpuinfer.errors import RequestError
from tpuinfer.server import trail
from tpuinfer.server.asked import Encoder as Encoder
from tpuinfer.server.asked import Tokenizer as Tokenizer
from tpuinfer.server.failures import ApiError, EngineDeadError, NotReadyError

_log = logging.getLogger(__name__)

Command = Callable[[Engine], None]


class Answers:
    """The deltas of requests that were submitted together; belongs to the event loop.

    Iterating gives what has arrived since the last look, as a list that is never empty, until
    every request has finished. `close` aborts those that have not; it must always be called.
    """

    def __init__(self, bridge: "Bridge", requests: Sequence[Request]) -> None:
        self._bridge = bridge
        self._open = {request.request_id for request in requests}
        self._arrived: list[Delta] = []
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._trail = trail.current()
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aiter__(self) -> AsyncIterator[list[Delta]]:
        while True:
            if self._arrived:
                deltas, self._arrived = self._arrived, []
                yield deltas
            elif self._failure is not None:
                raise self._failure.with_traceback(None)
            elif not self._open:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def push(self, delta: Delta) -> None:
        self._arrived.append(delta)
        if self._trail is not None:
            self._trail.add(delta)
        if delta.finish_reason is not None:
            self._open.discard(delta.request_id)
        self._wake.set()

    def admit(self) -> None:
        if not self.admitted.done():
            self.admitted.set_result(None)

    def fail(self, failure: Exception) -> None:
        """End now: what awaits admission, or the next deltas, gets `failure`."""
        self._failure = failure
        self._open.clear()
        if not self.admitted.done():
            self.admitted.set_exception(failure)
        self._wake.set()

    def close(self) -> None:
        if self._open:
            self._bridge.abort(self._open)
            self._open = set()


class Bridge:
    """Exists before the engine does, so that the server can answer "not ready yet".

    `attach` and `stop` may be called from any thread; the rest belongs to the event loop.
    """

    def __init__(self, model_name: str) -> None:
        self._name = model_name
        self._changed = threading.Condition()
        self._commands: deque[Command] = deque()
        self._stopping = False
        self._failure: Exception | None = NotReadyError(f"{model_name} is still loading")
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None
        self._encoder: Encoder | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: dict[str, Answers] = {}
        self._updates: set[asyncio.Future[int]] = set()

    def attach(self, engine: Engine, tokenizer: Tokenizer) -> None:
        """Take a warm engine and start its thread: ready from here on."""
        with self._changed:
            assert self._thread is None, "a bridge carries one engine"
            if self._stopping:
                return
            self._engine, self._tokenizer, self._failure = engine, tokenizer, None
            self._thread = threading.Thread(
                target=self._run, args=(engine,), name="engine", daemon=True
            )
            self._thread.start()

    def attach_encoder(self, encoder: Encoder, tokenizer: Tokenizer) -> None:
        """Take what makes vectors, and no text: `submit` refuses, and the rest goes on."""
        with self._changed:
            assert self._thread is None, "a bridge carries one engine"
            if not self._stopping:
                self._encoder, self._tokenizer, self._failure = encoder, tokenizer, None

    def drain(self) -> None:
        """Take no more requests; those in flight go on."""
        with self._changed:
            if self._failure is None:
                self._failure = NotReadyError("the server is stopping")

    @property
    def idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._answers and (self._encoder is None or self._encoder.idle)

    def stop(self, timeout: float = 10.0) -> None:
        """End the engine thread after the step it is in; requests in flight get an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)
        if self._encoder is not None:
            self._encoder.stop()
        self._fail(NotReadyError("the server is stopping"))

    @property
    def failure(self) -> Exception | None:
        """Why no request can be taken now; None when ready."""
        if self._failure is None and self._encoder is not None:
            return self._encoder.failure
        return self._failure

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises NotReadyError or EngineDeadError when no request can be taken."""
        self._require_ready()
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def context(self) -> int | None:
        """The most tokens a prompt and its answer may have, None for any number.

        Raises like `tokenizer`.
        """
        self._require_ready()
        if self._encoder is not None:
            return self._encoder.limit
        return self._decoder.context

    @property
    def vocab(self) -> int:
        """Ids that the model scores, those of no spelling included. Raises like `tokenizer`."""
        self._require_ready()
        return self._decoder.runner.vocab

    @property
    def slots(self) -> int:
        """Answers that are generated at once; 0 of an encoder. Raises like `tokenizer`."""
        self._require_ready()
        return 0 if self._engine is None else self._engine.runner.layout.slots

    @property
    def version(self) -> int:
        """How often the weights were replaced. Raises like `tokenizer`."""
        self._require_ready()
        return 0 if self._engine is None else self._engine.version

    @property
    def encoder(self) -> Encoder:
        """What makes vectors of texts. Raises like `tokenizer`; ApiError of a model without one."""
        self._require_ready()
        if self._encoder is None:
            message = (
                f"model {self._name!r} makes text, and no embeddings: use /v1/chat/completions or "
                "/v1/completions, or serve an encoder such as all-minilm-l6-v2"
            )
            raise ApiError(400, message, param="model", code="unsupported_endpoint")
        return self._encoder

    def require_decoder(self) -> None:
        """Raises ApiError if the model is an encoder, else like `tokenizer`."""
        self._require_ready()
        assert self._decoder is self._engine

    @property
    def _decoder(self) -> Engine:
        if self._engine is None:
            message = (
                f"model {self._name!r} is an encoder: it makes embeddings, and no text; use "
                "/v1/embeddings"
            )
            raise ApiError(400, message, param="model", code="unsupported_endpoint")
        return self._engine

    @property
    def metrics(self) -> Metrics | None:
        """The engine's counters, once there is an engine."""
        return self._engine.metrics if self._engine is not None else None

    async def submit(self, requests: Sequence[Request]) -> Answers:
        """Hand requests to the engine, all of them or none, and wait until it took them.

        Raises:
          RequestError: the engine refuses one of them (QueueFullError: for now).
          NotReadyError, EngineDeadError: there is no engine to take them.
          ApiError: the model is an encoder.

        """
        answers = Answers(self, requests)
        if (here := trail.current()) is not None:
            here.model = self._name
            here.submitted(requests, self.version)
        self._loop = asyncio.get_running_loop()
        with self._changed:
            self.require_decoder()
            for request in requests:
                self._answers[request.request_id] = answers
            self._command(partial(self._admit, answers, requests))
        try:
            await answers.admitted
        except BaseException:
            answers.close()
            raise
        return answers

    async def update(self, params: Any) -> int:
        """Give the engine other weights; returns their version once it has taken them.

        Requests in flight are answered with the old ones.

        Raises:
          RequestError: the weights do not fit, or others are waiting to be taken.
          NotReadyError, EngineDeadError: there is no engine to take them.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        taken: asyncio.Future[int] = loop.create_future()

        def settle(error: Exception | None, version: int) -> None:
            if not taken.done():
                taken.set_exception(error) if error else taken.set_result(version)

        def obey(engine: Engine) -> None:
            def done(error: RequestError | None) -> None:
                self._post(settle, error, engine.version)

            try:
                engine.update(params, done)
            except RequestError as error:
                done(error)

        with self._changed:
            self.require_decoder()
            self._updates.add(taken)
            self._command(obey)
        try:
            return await taken
        finally:
            self._updates.discard(taken)

    def abort(self, request_ids: set[str]) -> None:
        """Forget requests that nobody waits for and free their slots at the next step."""

        def obey(engine: Engine) -> None:
            for request_id in request_ids:
                engine.abort(request_id)

        self._forget(request_ids)
        with self._changed:
            self._command(obey)

    def _require_ready(self) -> None:
        if (failure := self.failure) is not None:
            raise failure.with_traceback(None)  # else it grows with every raise

    def _command(self, command: Command) -> None:
        self._commands.append(command)
        self._changed.notify()

    def _run(self, engine: Engine) -> None:
        try:
            while self._obey(engine):
                if engine.has_work and (deltas := engine.step()):
                    self._post(self._deliver, deltas)
        except Exception as error:
            _log.exception("the engine died")
            self._fail(EngineDeadError(f"the engine died: {type(error).__name__}"))

    def _fail(self, failure: Exception) -> None:
        """Never ready again: every request, in flight or new, gets the first such failure."""
        with self._changed:
            if isinstance(self._failure, EngineDeadError):
                return
            self._failure = failure
        self._post(self._fail_all, failure)

    def _obey(self, engine: Engine) -> bool:
        """Sleep until there is something to do, then do what was asked; False: stop."""
        with self._changed:
            while not (self._commands or self._stopping or engine.has_work):
                self._changed.wait()
            if self._stopping:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command(engine)
        return True

    def _admit(self, answers: Answers, requests: Sequence[Request], engine: Engine) -> None:
        for count, request in enumerate(requests):
            try:
                engine.add(request)
            except RequestError as error:
                for earlier in requests[:count]:
                    engine.abort(earlier.request_id)
                self._post(self._refuse, answers, requests, error)
                return
        self._post(answers.admit)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        """Run `call` on the event loop; once the loop is closed, nobody waits for it."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(call, *args)
            except RuntimeError:
                _log.debug("the event loop closed; %d requests dropped", len(self._answers))

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            answers = self._answers.get(delta.request_id)
            if answers is not None:
                answers.push(delta)
                if delta.finish_reason is not None:
                    del self._answers[delta.request_id]

    def _refuse(self, answers: Answers, requests: Sequence[Request], error: RequestError) -> None:
        self._forget({request.request_id for request in requests})
        answers.fail(error)

    def _forget(self, request_ids: set[str]) -> None:
        for request_id in request_ids:
            self._answers.pop(request_id, None)

    def _fail_all(self, failure: Exception) -> None:
        waiting = list(self._answers.values())
        self._answers.clear()
        for answers in waiting:
            answers.fail(failure)
        for taken in list(self._updates):
            if not taken.done():
                taken.set_exception(failure)
