"""The engine step: plan, dispatch, and only then read what was dispatched before. No jax.

The accelerator never waits for the host: while dispatch k is read, detokenised and sent to its
readers, dispatch k + 1 runs. So a row may end in k and still be listed in k + 1. What keeps this
safe: a dispatch carries the jobs it was made for, and its columns belong to them for good, never to
whoever holds the slot when it is read. Slot 3, request A, then B:

    step        7          8               9
    dispatch    D7 {3: A}  D8 {3: A}       P9 {3: B}  D9 {3: B}
    read        D6         D7: A ends      D8, P9: B's first token
    slot 3      A          A, then free    B

D8's column 3 holds -1 if the device ended A too (a stop id, its limit), or a token too many if only
the host did (a stop string, an abort). Either way A has finished, and the column is passed over.
P9 reopens the slot after D8 in the order of dispatch, so B starts clean.
"""

import random
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tpuinfer.engine.answer import Answer, Detokenizer, Top
from tpuinfer.engine.metrics import Metrics
from tpuinfer.engine.request import (
    MAX_STOP_IDS,
    Delta,
    FinishReason,
    Phase,
    Request,
    SamplingParams,
)
from tpuinfer.engine.runner import Pending, Runner, StepTokens
from tpuinfer.engine.scheduler import Job, Scheduler
from tpuinfer.errors import RequestError
from tpuinfer.programs.buckets import cut

_NAP = 0.001
"""The longest sleep of a step, seconds: whoever calls meanwhile is kept waiting that long."""


_MOST_POSITIONS = 2**31 - 1
"""Positions are 32-bit integers on the device."""


class Tokenizer(Protocol):
    """What the engine needs to know of a vocabulary."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def has_text(self) -> bool: ...
    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer: ...


class Dispatch(NamedTuple):
    """One dispatch in flight: its first `steps` rows hold tokens, in the columns of `rows`."""

    pending: Pending
    steps: int
    rows: dict[int, Job]


class Engine:
    """Continuous batching over one runner. Every call must come from one thread.

    Each request that is added gets deltas from `step` until one carries a finish reason, or until
    it is aborted; then its id is free again.

    Attributes:
      runner: what computes.
      metrics: counters and gauges, current after every call.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        steps: int = 1,
        max_waiting: int = 4096,
        prefill_wait: float = 0.0,
    ) -> None:
        """An engine with nothing to do yet.

        Args:
          runner: slots and programs; nobody else may dispatch to it meanwhile.
          tokenizer: the vocabulary of the runner's model.
          steps: tokens a row per decode dispatch, a platform's setting.
          max_waiting: how many requests may wait beyond those that a free slot will take.
          prefill_wait: seconds that a new request may be held back so that others join its prefill;
            those that decode go on meanwhile.
        """
        self.runner = runner
        self.metrics = Metrics(slots=runner.layout.slots)
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(
            runner.layout,
            rows=runner.prefill_rows,
            steps=steps,
            max_waiting=max_waiting,
            wait=prefill_wait,
        )
        self._jobs: dict[str, Job] = {}
        self._answers: dict[Job, Answer] = {}
        self._in_flight: deque[Dispatch] = deque()
        self._random = random.SystemRandom()

    @property
    def context(self) -> int | None:
        """The most tokens that a prompt and its answer may have; None: rings roll, any number."""
        return None if self.runner.rolls else self.runner.layout.capacity

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to dispatch or read."""
        return bool(self._jobs or self._in_flight)

    def add(self, request: Request) -> None:
        """Put a request in line.

        Its max_tokens is cut to what the context leaves; None asks for all of that. Where rings
        roll the context has no end: nothing is cut, and None asks for as many tokens as the longest
        ring holds.

        Raises:
          RequestError: the prompt is empty, too long, or has ids outside the vocabulary; the stop
            ids are too many or outside the vocabulary; the id belongs to a live request.
          QueueFullError: too many are waiting; a server answers 503.
        """
        if request.request_id in self._jobs:
            raise RequestError(
                f"request_id {request.request_id!r} is that of a live request: give another",
                param="request_id",
            )
        prompt, params = tuple(request.prompt_token_ids), request.params
        self._check_prompt(prompt)
        if params.stop and not self._tokenizer.has_text:
            raise RequestError(
                f"stop is {list(params.stop)}, but this checkpoint has no tokenizer, so its "
                "answers have no text: give stop_token_ids",
                param="stop",
            )
        stop_ids = self._stop_ids(params)
        limit = self._limit(len(prompt), params.max_tokens)
        job = Job(
            request,
            prompt,
            limit=limit,
            need=min(len(prompt) + limit, self.runner.layout.capacity),
            stop_ids=stop_ids,
            seed=self._random.getrandbits(32) if params.seed is None else fold(params.seed),
            chunks=cut(len(prompt), self.runner.chunk, self.runner.buckets),
        )
        answer = Answer(
            request,
            limit=limit,
            eos_ids=self._tokenizer.eos_ids,
            stop_ids=stop_ids,
            detokenizer=self._tokenizer.detokenizer(skip_special_tokens=params.skip_special_tokens),
        )
        self._scheduler.add(job)
        self._jobs[request.request_id] = job
        self._answers[job] = answer
        self._gauge()

    def abort(self, request_id: str) -> bool:
        """End a request now: no delta names it any more, and its slot is free at the next step.

        False if there is no live request of that id.
        """
        job = self._jobs.get(request_id)
        if job is None:
            return False
        self._finish(job, "abort")
        self._gauge()
        return True

    def step(self) -> list[Delta]:
        """At most one prefill dispatch, then one decode; then read all but the newest.

        Returns what was read, one delta for each request and dispatch. When there was nothing to
        dispatch, everything is read; when there was nothing to read either, because the only
        prefill is held back for more to join, the step sleeps for a moment.
        """
        if not self.has_work:
            return []
        now = time.monotonic()
        self._admit(now)
        prefilled = self._dispatch_prefill(now)
        decoded = self._dispatch_decode()
        if self._in_flight:
            deltas = self._read(leave=1 if prefilled or decoded else 0)
            self.metrics.steps += 1
        else:
            deltas = []
            time.sleep(min(self._scheduler.held(now), _NAP))
        self.metrics.recompiles = self.runner.recompiles
        self._gauge()
        return deltas

    def _admit(self, now: float) -> None:
        for job in self._scheduler.admit(now):
            self.metrics.admitted(len(job.prompt), now - job.request.arrival)

    def _dispatch_prefill(self, now: float) -> bool:
        plan = self._scheduler.plan_prefill(now)
        if plan is None:
            return False
        self._in_flight.append(Dispatch(self.runner.prefill(plan.work), 1, plan.rows))
        return True

    def _dispatch_decode(self) -> bool:
        plan = self._scheduler.plan_decode()
        if plan is None:
            return False
        pending = self.runner.decode(plan.steps, tuple(plan.rows))
        self._in_flight.append(Dispatch(pending, plan.steps, plan.rows))
        self.metrics.decoded(len(plan.rows))
        return True

    def _read(self, leave: int) -> list[Delta]:
        """Wait for the oldest dispatches until only `leave` are in flight."""
        deltas: list[Delta] = []
        while len(self._in_flight) > leave:
            pending, steps, rows = self._in_flight.popleft()
            result = pending.result()
            now = time.monotonic()
            tokens = result.tokens[:steps].T.tolist()
            logprobs = result.logprobs[:steps].T.tolist()
            for slot, job in rows.items():
                if job.phase is Phase.FINISHED:
                    continue
                answer = self._answers[job]
                top = _top(result, slot) if answer.top else None
                delta = answer.take(tokens[slot], logprobs[slot], top)
                self._account(job, answer, delta, now)
                deltas.append(delta)
        return deltas

    def _account(self, job: Job, answer: Answer, delta: Delta, now: float) -> None:
        """Count what was read at `now`, and let go of a request that ended with it."""
        self.metrics.generated(len(delta.token_ids), now, answer.last_seen, job.request.arrival)
        answer.last_seen = now
        if delta.finish_reason is not None:
            self._finish(job, delta.finish_reason)

    def _finish(self, job: Job, reason: FinishReason) -> None:
        self._scheduler.finish(job)
        del self._jobs[job.request.request_id]
        del self._answers[job]
        self.metrics.finished[reason] += 1

    def _gauge(self) -> None:
        self.metrics.running = self._scheduler.running
        self.metrics.waiting = self._scheduler.waiting

    def _limit(self, prompt: int, max_tokens: int | None) -> int:
        """The most tokens a row may generate after a prompt of that many."""
        context = self.context
        if context is None:
            return min(max_tokens or self.runner.layout.capacity, _MOST_POSITIONS - prompt)
        return min(max_tokens or context, context - prompt)

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        context, vocab = self.context, self._tokenizer.vocab_size
        if not prompt:
            raise RequestError("the prompt is empty: it needs at least 1 token", param="prompt")
        if context is not None and len(prompt) + 1 > context:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and the context holds {context}: "
                f"with one token to generate, at most {context - 1} fit",
                param="prompt",
            )
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocab:
                raise RequestError(
                    f"the prompt has token id {token}: it must be in [0, {vocab - 1}]",
                    param="prompt",
                )

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        """The ids that end the row, each once: the model's own unless ignored, then the asked."""
        vocab = self._tokenizer.vocab_size
        for token in params.stop_token_ids:
            if not 0 <= token < vocab:
                raise RequestError(
                    f"stop_token_ids has {token}: each must be in [0, {vocab - 1}]",
                    param="stop_token_ids",
                )
        own = () if params.ignore_eos else self._tokenizer.eos_ids
        stop_ids = tuple(dict.fromkeys((*own, *params.stop_token_ids)))
        if len(stop_ids) > MAX_STOP_IDS:
            raise RequestError(
                f"stop_token_ids has {len(params.stop_token_ids)} ids beside the model's "
                f"{len(own)}: at most {MAX_STOP_IDS} in all",
                param="stop_token_ids",
            )
        return stop_ids


def _top(result: StepTokens, slot: int) -> Top | None:
    """One row's alternatives; None if the dispatch brought none."""
    if result.top_ids is None or result.top_logprobs is None:
        return None
    return result.top_ids[:, slot], result.top_logprobs[:, slot]


def fold(seed: int) -> int:
    """Any 64-bit seed to the 32 bits a row's key takes; [0, 2**32) is left as it is."""
    return (seed ^ seed >> 32) & 0xFFFFFFFF
