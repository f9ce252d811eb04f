"""From one row's token ids to deltas of text, by the rules the device stops by. No jax."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import Delta, FinishReason, Request
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
    with a stop string. A stop id's token is part of the ids but not of the text; a stop string's
    tokens are part of the ids, and the text is cut before it.
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
        self.top = request.params.logprobs or 0  # alternatives to each token that it asked for
        self.last_seen: float | None = None  # when its newest token was read, by the engine's clock
        self._request_id = request.request_id
        self._left = limit
        self._eos_ids = frozenset[int]() if request.params.ignore_eos else frozenset(eos_ids)
        self._stop_ids = frozenset(stop_ids)
        self._detokenizer = detokenizer
        self._checker = StopChecker(request.params.stop)
        self._wants_logprobs = request.params.logprobs is not None

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[float], alternatives: Top | None = None
    ) -> Delta:
        """The row's column of one dispatch: tokens up to its end, then -1.

        `alternatives` must be given if `top` of them were asked for. A row that ends without a
        reason that is known here would never finish: an AssertionError.
        """
        delta = Delta(self._request_id)
        for token in tokens:
            if token < 0:
                break
            delta.token_ids.append(token)
            self._left -= 1
            if token in self._stop_ids:
                self._end(delta, "stop", None if token in self._eos_ids else token)
                break
            self._emit(delta, self._detokenizer.push(token))
            if self._left == 0:
                self._end(delta, "length", None)
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
        return delta

    def _emit(self, delta: Delta, text: str) -> None:
        safe, hit = self._checker.push(text)
        delta.text += safe
        if hit is not None:
            delta.finish_reason, delta.stop_reason = "stop", hit

    def _end(self, delta: Delta, reason: FinishReason, stop_reason: int | None) -> None:
        """Let out what was held: half a character first, for it may complete a stop string.

        A stop string that is complete keeps its say.
        """
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
