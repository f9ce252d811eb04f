"""One prompt and `n` answers: as many requests. No jax."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from tpuinfer.engine.request import Constraint, Request, SamplingParams

_random = random.SystemRandom()


def fresh_seed() -> int:
    """One of 2**32, from the operating system."""
    return _random.getrandbits(32)


def split(
    request_id: str,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    *,
    constraint: Callable[[], Constraint] | None = None,
    shown_controls: Sequence[int] = (),
    background: bool = False,
) -> list[Request]:
    """The `params.n` requests that answer one prompt, as choices 0, 1, ...

    Alone, it keeps the id; of several, choice i is called "ID-i". A seed that is not set is drawn
    once for all of them: they differ by their choice. The prompt is scored once, in choice 0.

    Args:
      constraint: makes what one answer must conform to, afresh for each.
      shown_controls, background: see `Request`.
    """
    n = params.n
    seed = fresh_seed() if params.seed is None else params.seed
    first = replace(params, n=1, seed=seed)
    other = replace(first, prompt_logprobs=None) if n > 1 else first
    return [
        Request(
            f"{request_id}-{choice}" if n > 1 else request_id,
            prompt_token_ids,
            other if choice else first,
            choice,
            constraint() if constraint else None,
            shown_controls,
            background,
        )
        for choice in range(n)
    ]
