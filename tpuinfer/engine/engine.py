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

A request that is constrained cannot run ahead of what is read: its next mask is made from its last
token. It waits a dispatch, and the others do not; `scheduler` has the rules.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from tpuinfer.engine.accept import Tokenizer, accept, context_of
from tpuinfer.engine.answer import Answer, Top
from tpuinfer.engine.job import DecodePlan, Job, PrefillPlan
from tpuinfer.engine.metrics import Metrics
from tpuinfer.engine.request import Delta, FinishReason, Phase, Request
from tpuinfer.engine.runner import Pending, Runner, StepTokens
from tpuinfer.engine.scheduler import Scheduler
from tpuinfer.errors import RequestError

_NAP = 0.001
"""The longest sleep of a step, seconds: whoever calls meanwhile is kept waiting that long."""

Done = Callable[[RequestError | None], None]
"""Called once with None, or with why it could not be done."""


class Dispatch(NamedTuple):
    """One dispatch in flight, since `began`, seconds.

    The first `steps` rows hold tokens, in the columns of the plan's `rows`.
    """

    pending: Pending
    steps: int
    plan: PrefillPlan | DecodePlan
    began: float


class Engine:
    """Continuous batching over one runner. Every call must come from one thread.

    Each request that is added gets deltas from `step` until one carries a finish reason, or until
    it is aborted; then its id is free again.

    Attributes:
      runner: what computes.
      metrics: counters and gauges, current after every call.
      version: how often `update` has brought other weights.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        steps: int = 1,
        max_waiting: int = 4096,
        max_waiting_tokens: int | None = None,
        prefill_wait: float = 0.0,
    ) -> None:
        """An engine with nothing to do yet.

        Args:
          runner: slots and programs; nobody else may dispatch to it meanwhile.
          tokenizer: the vocabulary of the runner's model.
          steps: tokens a row per decode dispatch, a platform's setting.
          max_waiting: how many requests may wait beyond those that a free slot will take; as many
            interactive and as many background ones.
          max_waiting_tokens: how many tokens their prompts may have in all, unless only one waits,
            and likewise for each kind; None for any number.
          prefill_wait: seconds that a new request may be held back so that others join its prefill;
            those that decode go on meanwhile.
        """
        self.runner = runner
        self.version = 0
        layout = runner.layout
        rings = zip(layout.counts, layout.capacities, strict=True)
        self.metrics = Metrics(
            slots=layout.slots, ring_capacity=sum(count * capacity for count, capacity in rings)
        )
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(
            layout,
            rows=runner.prefill_rows,
            steps=steps,
            max_waiting=max_waiting,
            max_waiting_tokens=max_waiting_tokens,
            wait=prefill_wait,
        )
        self._jobs: dict[str, Job] = {}
        self._answers: dict[Job, Answer] = {}
        self._in_flight: deque[Dispatch] = deque()
        self._update: tuple[Any, Done] | None = None
        self._last_read = 0.0

    @property
    def context(self) -> int | None:
        """The most tokens that a prompt and its answer may have; None: rings roll, any number."""
        return context_of(self.runner)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to dispatch or read."""
        return bool(self._jobs or self._in_flight or self._update)

    def add(self, request: Request) -> None:
        """Put a request in line.

        Its max_tokens is cut to what the context leaves; None asks for all of that. Where rings
        roll the context has no end: nothing is cut, and None asks for as many tokens as the longest
        ring holds.

        Raises:
          RequestError: the prompt is empty, too long, or has ids outside the vocabulary; so has
            stop_token_ids or logit_bias, or the stop ids are too many; min_tokens is more than the
            context leaves; it is about text, and the checkpoint has none; the id belongs to a live
            request.
          QueueFullError: too many are waiting; a server answers 503.
        """
        if request.request_id in self._jobs:
            raise RequestError(
                f"request_id {request.request_id!r} is that of a live request: give another",
                param="request_id",
            )
        job = accept(request, self.runner, self._tokenizer)
        answer = Answer(
            request,
            limit=job.limit,
            eos_ids=self._tokenizer.eos_ids,
            stop_ids=job.stop_ids,
            detokenizer=self._tokenizer.detokenizer(
                skip_special_tokens=request.params.skip_special_tokens,
                keep=frozenset(request.shown_controls),
            ),
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

    def update(self, params: Any, on_done: Done) -> None:
        """Go on with other weights, of the same names, shapes, dtypes and places.

        Requests that have a slot are answered with the old ones; the others wait until those are
        done, and get the new ones, as does all that is added later. Background requests that still
        have a slot then are preempted. `on_done` is called then, from `step`, or at once where no
        slot is taken: with None, or with the error by which the runner refused the weights; in that
        case the old ones stay.

        Raises:
          RequestError: other weights are waiting to be taken already.
        """
        if self._update is not None:
            raise RequestError("other weights are waiting to be taken: try again when they are")
        self._update = params, on_done
        if not self._scheduler.running:
            self._take_weights()

    def step(self) -> list[Delta]:
        """At most one prefill dispatch, then one decode; then read all but the newest.

        Returns what was read, one delta for each request and dispatch. When there was nothing to
        dispatch, everything is read; when there was nothing to read either, because the only
        prefill is held back for more to join, the step sleeps for a moment.
        """
        if not self.has_work:
            return []
        now = time.monotonic()
        deltas = self._admit(now)
        prefill = self._scheduler.plan_prefill(now)
        decode = self._scheduler.plan_decode()
        self._dispatch(prefill, decode)
        if self._in_flight:
            deltas += self._read(leave=1 if prefill or decode else 0)
            self.metrics.steps += 1
        elif held := self._scheduler.held(now):
            time.sleep(min(held, _NAP))
        self.metrics.recompiles = self.runner.recompiles
        self._gauge()
        return deltas

    def _admit(self, now: float) -> list[Delta]:
        """Give out slots, unless other weights wait until no interactive request has one.

        Returns a last delta for each of those that are preempted, and of those whose constraint
        leaves no token to begin with.
        """
        scheduler = self._scheduler
        ended: list[Delta] = []
        if self._update is not None:
            if scheduler.running > len(scheduler.background_jobs):
                return []
            ended += map(self._preempt, scheduler.background_jobs)
            self._take_weights()
        admitted = scheduler.admit(now)
        while (job := scheduler.in_the_way()) is not None:
            ended.append(self._preempt(job))
            admitted += scheduler.admit(now)
        for job in admitted:
            request = job.request
            waited = now - request.arrival
            self.metrics.admitted(len(job.prompt), waited, background=request.background)
            if job.constrained:
                delta = self._answers[job].delta()
                self._constrain(job, delta)
                if delta.finish_reason is not None:
                    self._finish(job, delta.finish_reason)
                    ended.append(delta)
        return ended

    def _preempt(self, job: Job) -> Delta:
        self._finish(job, "preempted")
        request = job.request
        return Delta(request.request_id, finish_reason="preempted", choice=request.choice)

    def _take_weights(self) -> None:
        assert self._update is not None
        (params, on_done), self._update = self._update, None
        try:
            self.runner.update(params)
        except RequestError as error:
            on_done(error)
            return
        self.version += 1
        self.metrics.version = self.version
        on_done(None)

    def _constrain(self, job: Job, delta: Delta) -> None:
        """The mask of the job's next token; the delta says so if there is none."""
        job.mask = self._answers[job].mask(delta, self.runner.vocab)

    def _dispatch(self, prefill: PrefillPlan | None, decode: DecodePlan | None) -> None:
        masks = {**(prefill.masks if prefill else {}), **(decode.masks if decode else {})}
        if masks:
            self.runner.constrain(masks)
        if prefill:
            began = time.monotonic()
            pending = self.runner.prefill(prefill.work)
            self._in_flight.append(Dispatch(pending, 1, prefill, began))
        if decode:
            began = time.monotonic()
            pending = self.runner.decode(decode.steps, decode.quotas)
            self._in_flight.append(Dispatch(pending, decode.steps, decode, began))
            self.metrics.decoded(len(decode.rows))

    def _read(self, leave: int) -> list[Delta]:
        """Wait for the oldest dispatches until only `leave` are in flight."""
        deltas: list[Delta] = []
        while len(self._in_flight) > leave:
            pending, steps, plan, began = self._in_flight.popleft()
            result = pending.result()
            now = time.monotonic()
            if isinstance(plan, PrefillPlan):
                took = now - max(began, self._last_read)
                self._scheduler.prefilled(took, now, background=plan.background)
                for slot, job in plan.scored.items():
                    if job.phase is not Phase.FINISHED:
                        self._answers[job].score(result.prompts[slot])
            self._last_read = now
            tokens = result.tokens[:steps].T.tolist()
            logprobs = result.logprobs[:steps].T.tolist()
            for slot, job in plan.rows.items():
                if job.phase is Phase.FINISHED:
                    continue
                answer = self._answers[job]
                top = _top(result, slot) if answer.top else None
                delta = answer.take(tokens[slot], logprobs[slot], top)
                if job.constrained and delta.finish_reason is None:
                    self._constrain(job, delta)
                self._account(job, answer, delta, now)
                deltas.append(delta)
        return deltas

    def _account(self, job: Job, answer: Answer, delta: Delta, now: float) -> None:
        """Count what was read at `now`, and let go of a request that ended with it."""
        arrival, background = job.request.arrival, job.request.background
        count = len(delta.token_ids)
        self.metrics.generated(count, now, answer.last_seen, arrival, background=background)
        answer.last_seen = now
        if answer.first_seen is None:
            answer.first_seen = now
        if delta.finish_reason in ("stop", "length") and not background:
            self.metrics.answered(
                answer.count,
                arrival=arrival,
                admitted=job.admitted,
                first=answer.first_seen,
                last=now,
            )
        if delta.finish_reason is not None:
            self._finish(job, delta.finish_reason)

    def _finish(self, job: Job, reason: FinishReason) -> None:
        self._scheduler.finish(job)
        del self._jobs[job.request.request_id]
        del self._answers[job]
        self.metrics.finished[reason] += 1

    def _gauge(self) -> None:
        metrics, scheduler = self.metrics, self._scheduler
        metrics.running, metrics.waiting = scheduler.running, scheduler.waiting
        metrics.background_running = len(scheduler.background_jobs)
        metrics.background_waiting = scheduler.background_waiting
        metrics.waiting_tokens = scheduler.waiting_tokens
        metrics.ring_tokens = scheduler.ring_tokens


def _top(result: StepTokens, slot: int) -> Top | None:
    """One row's alternatives; None if the dispatch brought none."""
    if result.top_ids is None or result.top_logprobs is None:
        return None
    return result.top_ids[:, slot], result.top_logprobs[:, slot]
