"""What a caller asks for and what it gets back: plain data, no jax, no tokenizer.

The public names and fields follow vLLM's `SamplingParams` and `RequestOutput` where they fit, so
that scripts port.
"""

import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.errors import RequestError
from tpuinfer.grammar.guide import Guide

FinishReason = Literal["stop", "length", "abort", "error", "preempted"]

MAX_STOP_IDS = 16
"""Token ids that can end a row on the device: the model's own plus `stop_token_ids`."""

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256

TOP_LOGPROBS = 20
"""The most alternatives to each token whose log-probability a request may ask for."""

MAX_LOGIT_BIAS = 1024
"""Token ids whose logits a request may shift."""

MAX_CHOICES = 128
"""Answers that one prompt may ask for."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request picks its tokens. Everything here is honoured; nothing is dropped.

    The order of the transforms: repetition, frequency and presence penalty, logit_bias (before
    the penalties in vLLM), min_tokens, the guide; then temperature, min_p, top_k, and top_p over
    what is left.
    Log-probabilities are those of the model itself, before all of these.

    Attributes:
      n: how many answers to the prompt; each draws its own random numbers.
      temperature: 0 picks the most likely token; otherwise logits are divided by it.
      top_p: keep the smallest set of most likely tokens whose probability reaches top_p, (0, 1].
      top_k: keep the k most likely tokens; 0 or -1 keeps all.
      min_p: drop tokens less likely than min_p times the most likely one, [0, 1].
      repetition_penalty: positive logits of tokens that are in the prompt or the answer so far are
        divided by it, negative ones multiplied (arXiv:1909.05858), (0, 2]; 1 changes nothing.
      presence_penalty: taken off the logit of every token that is in the answer so far, [-2, 2].
      frequency_penalty: taken off as often as the token is in the answer so far, [-2, 2].
      logit_bias: token id -> what is added to its logit, [-100, 100]; at most MAX_LOGIT_BIAS ids.
      seed: the same seed, prompt and parameters give the same tokens; None draws a fresh one.
      max_tokens: the most tokens to generate; None means up to the context.
      min_tokens: until the answer has so many tokens, none that would end it is picked, and stop
        strings do not end it.
      stop: strings that end the text; the text returned ends before them.
      stop_token_ids: further token ids that end the row.
      ignore_eos: go on past the model's own end tokens.
      logprobs: None for none, 0 for the log-probability of each chosen token, n for those of the n
        most likely tokens beside it, at most TOP_LOGPROBS.
      prompt_logprobs: the same for the tokens of the prompt, each given those before it.
      skip_special_tokens: leave control tokens out of the text.
      guide: what the text must conform to; not together with ignore_eos or min_tokens.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop or ()))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        self._check("n", self.n, 1, MAX_CHOICES)
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
        for name in ("logprobs", "prompt_logprobs"):
            if (asked := getattr(self, name)) is not None:
                self._check(name, asked, 0, TOP_LOGPROBS)
        self._check_penalties()
        self._check_ends()
        self._check_stop()

    def _check_penalties(self) -> None:
        self._check("repetition_penalty", self.repetition_penalty, 0.0, 2.0)
        if self.repetition_penalty == 0:
            raise RequestError(
                "repetition_penalty is 0: it must be in (0, 2]; nearest: 0.01",
                param="repetition_penalty",
            )
        self._check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self._check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries: at most {MAX_LOGIT_BIAS}",
                param="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            self._check("logit_bias", bias, -100.0, 100.0, f"logit_bias of token {token}")

    def _check_ends(self) -> None:
        self._check("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens} and max_tokens is {self.max_tokens}: the least "
                f"must not exceed the most; nearest: {self.max_tokens}",
                param="min_tokens",
            )
        if self.guide is not None and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise RequestError(
                f"{name} and {self.guide.param} are both set: a text that must conform ends when "
                f"it is complete; leave {name} out",
                param=name,
            )

    def _check_stop(self) -> None:
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

    def _check(
        self, name: str, value: float, low: float, high: float, words: str | None = None
    ) -> None:
        if not low <= value <= high:  # NaN is not either
            near = low if not value > low else high
            raise RequestError(
                f"{words or name} is {value}: it must be in [{low}, {high}]; nearest: {near}",
                param=name,
            )


class Constraint(Protocol):
    """What one answer must conform to, as far as it has got; `tpuinfer.grammar` makes them.

    Attributes:
      done: the answer is complete, and no token could follow.
      error: why it cannot go on, in one line; None while it can.
    """

    @property
    def done(self) -> bool: ...

    @property
    def error(self) -> str | None: ...

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write which tokens may come next: bit i % 32 of words[i // 32] is that of token i."""

    def take(self, token: int) -> None:
        """Move on by a token that was picked."""


@dataclass
class Request:
    """One prompt on its way through the engine.

    Attributes:
      request_id: unique among the requests that are alive.
      prompt_token_ids: the whole prompt, special tokens included.
      params: how to sample.
      choice: which of several answers to the same prompt this is; it enters the random key.
      constraint: for `params.guide`, compiled, and of this request alone; None without one.
      shown_controls: control tokens that stay in the text even where special tokens are skipped:
        those that mark tool calls and reasoning in the model's format.
      background: it gives way to requests that are not. It gets a slot that none of them waits for,
        and may lose it to one: then it ends with finish_reason "preempted", what came of it is
        void, and the same request can be added again, for the same tokens: with its seed set, and a
        fresh constraint if it had one.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    constraint: Constraint | None = None
    shown_controls: Sequence[int] = ()
    background: bool = False
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
      prompt_logprobs: on the first delta of a request that asked: for each token of the prompt its
        log-probability given those before it, None for the first. prompt_top_logprobs: likewise the
        most likely tokens there; None unless it asked for some.
      finish_reason: set on the last delta of a request, else None.
      stop_reason: the stop string or token id that ended it; None for the model's own end token.
      error: with finish_reason "error", what went wrong, in one line.
      choice: which of the answers to its prompt this belongs to, as in `Request`.
    """

    request_id: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[dict[int, float] | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    choice: int = 0


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
    error: str | None = None


@dataclass
class RequestOutput:
    """The answer to one prompt of `LLM.generate`: `outputs` has as many as `n` asked for."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[float | None] | None = None
    prompt_top_logprobs: list[dict[int, float] | None] | None = None


class Phase(enum.Enum):
    """Where a request is: waiting -> prefilling -> decoding -> finished."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
