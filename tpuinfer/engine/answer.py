"""From one row's token ids to deltas of text, by the rules the device stops by. No jax."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import Delta, FinishReason, Request
from tpuinfer.engine.runner import PromptScores
from tpuinfer.tokenizer.detokenize import StopChecker


class Detokenizer(Protocol):
    """Token ids in, whole characters out."""

    def push(self, token: int, /) -> str: ...
    def flush(self) -> str: ...


Top = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Alternatives to the tokens of one row: ids and log-probabilities [n, TOP], as `StepTokens`."""


class Answer:
    """What one request has been answered so far.

    A row ends, here as on the device, with a stop id or its limit-th token; here alone it also ends
    with a stop string, or when its constraint is done or fails. A stop id's token is part of the
    ids but not of the text; a stop string's tokens are part of the ids, and the text is cut before
    it.

    Attributes:
      count: tokens so far.
      top: alternatives to each token that it asked for.
      first_seen, last_seen: when its first and its newest token were read; None before.
    """

    def __init__(
        self,
        request: Request,
        *,
        limit: int,
        eos_ids: Sequence[int],
        stop_ids: Sequence[int],
        detokenizer: Detokenizer,
    ) -> None:
        """`stop_ids`: all ids that end the row; one of `eos_ids` among them is no stop_reason."""
        params = request.params
        self.count = 0
        self.top = params.logprobs or 0
        self.first_seen: float | None = None
        self.last_seen: float | None = None
        self._request_id = request.request_id
        self._choice = request.choice
        self._limit = limit
        self._least = params.min_tokens
        self._eos_ids = frozenset[int]() if params.ignore_eos else frozenset(eos_ids)
        self._stop_ids = frozenset(stop_ids)
        self._detokenizer = detokenizer
        self._checker = StopChecker(params.stop)
        self._constraint = request.constraint
        self._wants_logprobs = params.logprobs is not None
        self._wants_prompt = params.prompt_logprobs
        self._prompt: list[float | None] = [None]
        self._prompt_top: list[dict[int, float] | None] = [None]

    def delta(self) -> Delta:
        """Nothing new yet."""
        return Delta(self._request_id, choice=self._choice)

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[float], alternatives: Top | None = None
    ) -> Delta:
        """The row's column of one dispatch: tokens up to its end, then -1.

        `alternatives` must be given if `top` of them were asked for. A row that ends without a
        reason that is known here would never finish: an AssertionError.
        """
        delta, first = self.delta(), self.count == 0
        for token in tokens:
            if token < 0:
                break
            self._push(delta, token)
            if delta.finish_reason is not None:
                break
        count = len(delta.token_ids)
        assert delta.finish_reason or 0 < count == len(tokens), (
            f"{self._request_id}: {count} of {len(tokens)} tokens, and no reason to end"
        )
        if self._wants_logprobs:
            delta.logprobs = list(logprobs[:count])
        if self.top:
            assert alternatives is not None, f"{self._request_id}: {self.top} alternatives missing"
            delta.top_logprobs = _as_dicts(alternatives, count, self.top)
        if first and self._wants_prompt is not None:
            delta.prompt_logprobs = self._prompt
            delta.prompt_top_logprobs = self._prompt_top if self._wants_prompt else None
        return delta

    def score(self, scores: PromptScores) -> None:
        """What the next chunk of the prompt brought; the whole goes out with the first token."""
        self._prompt += scores.logprobs.tolist()
        if self._wants_prompt:
            top = scores.top_ids, scores.top_logprobs
            self._prompt_top += _as_dicts(top, len(scores.logprobs), self._wants_prompt)

    def mask(self, delta: Delta, vocab: int) -> NDArray[np.int32] | None:
        """Which of `vocab` tokens a constrained row may pick next, as `Runner.constrain` has it.

        None when it cannot go on; the delta then says how it ends.
        """
        assert self._constraint is not None
        words = np.zeros(-(-vocab // 32), np.int32)
        if not self._conformed(delta):
            self._constraint.fill(words)
            self._conformed(delta)
        return words if delta.finish_reason is None else None

    def _push(self, delta: Delta, token: int) -> None:
        delta.token_ids.append(token)
        self.count += 1
        if token in self._stop_ids:
            self._end(delta, "stop", None if token in self._eos_ids else token)
            return
        self._emit(delta, self._detokenizer.push(token))
        if self._constraint is not None and delta.finish_reason is None:
            self._constraint.take(token)
            self._conformed(delta)
        if self.count == self._limit:
            self._end(delta, "length", None)

    def _conformed(self, delta: Delta) -> bool:
        """Whether the constraint ends the answer: nothing can follow, or it has failed."""
        assert self._constraint is not None
        if self._constraint.error is not None:
            self._end(delta, "error", None)
            if delta.finish_reason == "error":
                delta.error = self._constraint.error
        elif self._constraint.done:
            self._end(delta, "stop", None)
        return delta.finish_reason is not None

    def _emit(self, delta: Delta, text: str) -> None:
        if self.count <= self._least:
            delta.text += self._checker.pass_by(text)
            return
        safe, hit = self._checker.push(text)
        delta.text += safe
        if hit is not None:
            delta.finish_reason, delta.stop_reason = "stop", hit

    def _end(self, delta: Delta, reason: FinishReason, stop_reason: int | None) -> None:
        """Let out what was held: half a character first, for it may complete a stop string.

        What has ended it already keeps its say, and so does a stop string that is complete.
        """
        if delta.finish_reason is None:
            self._emit(delta, self._detokenizer.flush())
        if delta.finish_reason is None:
            delta.finish_reason, delta.stop_reason = reason, stop_reason
            delta.text += self._checker.flush()


def _as_dicts(alternatives: Top, count: int, top: int) -> list[dict[int, float]]:
    """The first `top` alternatives to each of the first `count` tokens; id -1 is none."""
    ids, logprobs = (array[:count, :top].tolist() for array in alternatives)
    found = [dict(zip(*row, strict=True)) for row in zip(ids, logprobs, strict=True)]
    for one in found:
        one.pop(-1, None)
    return found
