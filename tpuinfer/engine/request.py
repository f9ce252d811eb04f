"""What a caller asks for and what it gets back: plain data, no jax, no tokenizer.

The public names and fields follow vLLM's `SamplingParams` and `RequestOutput` where they fit, so
that scripts port.
"""

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tpuinfer.errors import RequestError

FinishReason = Literal["stop", "length", "abort"]

MAX_STOP_IDS = 16
"""Token ids that can end a row on the device: the model's own plus `stop_token_ids`."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

TOP_LOGPROBS = 20
"""The most alternatives to each token whose log-probability a request may ask for."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request picks its tokens. Everything here is honoured; nothing is dropped.

    The order of the transforms: temperature, then min_p, then top_k, then top_p over what is left.

    Attributes:
      temperature: 0 picks the most likely token; otherwise logits are divided by it.
      top_p: keep the smallest set of most likely tokens whose probability reaches top_p, (0, 1].
      top_k: keep the k most likely tokens; 0 or -1 keeps all.
      min_p: drop tokens less likely than min_p times the most likely one, [0, 1].
      seed: the same seed, prompt and parameters give the same tokens; None draws a fresh one.
      max_tokens: the most tokens to generate; None means up to the context.
      stop: strings that end the text; the text returned ends before them.
      stop_token_ids: further token ids that end the row.
      ignore_eos: go on past the model's own end tokens.
      logprobs: None for none, 0 for the log-probability of each chosen token, n for those of the n
        most likely tokens beside it, at most TOP_LOGPROBS.
      skip_special_tokens: leave control tokens out of the text.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check("temperature", self.temperature, 0.0, 2.0**16)
        self._check("min_p", self.min_p, 0.0, 1.0)
        self._check("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise RequestError(
                "top_p is 0: it must be in (0, 1]; for greedy use temperature 0", param="top_p"
            )
        self._check("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            self._check("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            self._check("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.logprobs is not None:
            self._check("logprobs", self.logprobs, 0, TOP_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop has {len(self.stop)} strings: at most {MAX_STOP_STRINGS}", param="stop"
            )
        for text in self.stop:
            if not text or len(text) > MAX_STOP_CHARS:
                raise RequestError(
                    f"stop string of {len(text)} characters: each must have 1 to {MAX_STOP_CHARS}",
                    param="stop",
                )

    def _check(self, name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:  # NaN is not either
            near = low if not value > low else high
            raise RequestError(
                f"{name} is {value}: it must be in [{low}, {high}]; nearest: {near}", param=name
            )


@dataclass
class Request:
    """One prompt on its way through the engine.

    Attributes:
      request_id: unique among the requests that are alive.
      prompt_token_ids: the whole prompt, special tokens included.
      params: how to sample.
      choice: which of several answers to the same prompt this is; it enters the random key.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    arrival: float = field(default_factory=time.monotonic)


@dataclass
class Delta:
    """What one engine step adds to one request.

    Attributes:
      text: whole characters only, and never part of a stop string.
      token_ids: every token generated since the last delta, an end token included.
      logprobs: one per token id when the request asked, else None.
      top_logprobs: for each token id the most likely tokens there, best first, as many as asked for
        (or as the vocabulary has) and each with its log-probability; None unless it asked for some.
      finish_reason: set on the last delta of a request, else None.
      stop_reason: the stop string or token id that ended it; None for the model's own end token.
    """

    request_id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass
class CompletionOutput:
    """One finished or growing answer; `Delta` says what the fields hold."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass
class RequestOutput:
    """The answer to one prompt of `LLM.generate`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool


class Phase(enum.Enum):
    """Where a request is: waiting -> prefilling -> decoding -> finished."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
