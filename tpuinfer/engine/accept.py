"""What a request must be for an engine to take it, and the job it then is. No jax."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from tpuinfer.engine.answer import Detokenizer
from tpuinfer.engine.choices import fresh_seed
from tpuinfer.engine.job import Job
from tpuinfer.engine.request import MAX_STOP_IDS, Request, SamplingParams
from tpuinfer.engine.runner import Runner
from tpuinfer.errors import RequestError
from tpuinfer.programs.buckets import cut

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
    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> Detokenizer: ...


def context_of(runner: Runner) -> int | None:
    """The most tokens that a prompt and its answer may have; None: rings roll, any number."""
    return None if runner.rolls else runner.layout.capacity


def accept(request: Request, runner: Runner, tokenizer: Tokenizer) -> Job:
    """The job that a request is; its prompt is copied.

    Raises:
      RequestError: it asks for what this model or its context cannot give; see `Engine.add`.
    """
    prompt, params = tuple(request.prompt_token_ids), request.params
    context, vocab = context_of(runner), tokenizer.vocab_size
    _check_prompt(prompt, context, vocab)
    check_text(params, tokenizer)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab)
    _check_ids("logit_bias", params.logit_bias, vocab)
    assert params.guide is None or request.constraint is not None, "a guide that is not compiled"
    limit = _limit(len(prompt), params.max_tokens, runner)
    if params.min_tokens > limit:
        raise RequestError(
            f"min_tokens is {params.min_tokens}, and after a prompt of {len(prompt)} tokens the "
            f"context of {context} leaves {limit}; nearest: {limit}",
            param="min_tokens",
        )
    return Job(
        request,
        prompt,
        limit=limit,
        need=min(len(prompt) + limit, runner.layout.capacity),
        stop_ids=_stop_ids(params, tokenizer.eos_ids),
        seed=fresh_seed() if params.seed is None else fold(params.seed),
        chunks=cut(len(prompt), runner.chunk, runner.buckets),
    )


def check_text(params: SamplingParams, tokenizer: Tokenizer) -> None:
    """What is about the text of an answer needs a checkpoint that has text.

    Raises:
      RequestError: it has none, and stop strings or a guide are set.
    """
    if tokenizer.has_text:
        return
    for name, asked, instead in (
        ("stop", bool(params.stop), "give stop_token_ids"),
        (params.guide.param if params.guide else "", params.guide is not None, "leave it out"),
    ):
        if asked:
            raise RequestError(
                f"{name} is set, but this checkpoint has no tokenizer, so its answers have no "
                f"text: {instead}",
                param=name,
            )


def fold(seed: int) -> int:
    """Any 64-bit seed to the 32 bits a row's key takes; [0, 2**32) is left as it is."""
    return (seed ^ seed >> 32) & 0xFFFFFFFF


def _limit(prompt: int, max_tokens: int | None, runner: Runner) -> int:
    """The most tokens a row may generate after a prompt of that many."""
    context = context_of(runner)
    if context is None:
        return min(max_tokens or runner.layout.capacity, _MOST_POSITIONS - prompt)
    return min(max_tokens or context, context - prompt)


def _check_prompt(prompt: Sequence[int], context: int | None, vocab: int) -> None:
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


def _check_ids(name: str, ids: Iterable[int], vocab: int) -> None:
    for token in ids:
        if not 0 <= token < vocab:
            raise RequestError(
                f"{name} has {token}: each must be in [0, {vocab - 1}]",
                param=name,
            )


def _stop_ids(params: SamplingParams, eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids that end the row, each once: the model's own unless ignored, then the asked."""
    own = () if params.ignore_eos else eos_ids
    stop_ids = tuple(dict.fromkeys((*own, *params.stop_token_ids)))
    if len(stop_ids) > MAX_STOP_IDS:
        raise RequestError(
            f"stop_token_ids has {len(params.stop_token_ids)} ids beside the model's "
            f"{len(own)}: at most {MAX_STOP_IDS} in all",
            param="stop_token_ids",
        )
    return stop_ids
