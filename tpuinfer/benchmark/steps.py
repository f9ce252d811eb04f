"""A runner's steps, timed: what prefill and decode take without an engine around them. No jax."""

import time
from collections.abc import Sequence

from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import Runner, cut_prompt
from tpuinfer.errors import ConfigError
from tpuinfer.programs.slots import SlotLayout

_GREEDY = SamplingParams(temperature=0)
WARM = 2
"""Dispatches at the start of a round whose times are left out."""


def pick_slots(layout: SlotLayout, live: int, tokens: int) -> list[int]:
    """`live` slots that hold `tokens` each, as an engine would fill them: round the data shards.

    Raises:
      ConfigError: there are fewer such slots.
    """
    if layout.capacity < tokens:
        raise ConfigError(
            f"context is {layout.capacity}, but prompt and answer take {tokens} tokens; "
            f"nearest: {tokens}"
        )
    fit = [slot for slot in range(layout.slots) if layout.capacity_of(slot) >= tokens]
    if len(fit) < live:
        raise ConfigError(
            f"batch is {live}, but {len(fit)} slots hold {tokens} tokens; nearest: {len(fit)}"
        )
    return sorted(fit, key=lambda slot: (slot % layout.per_shard, slot))[:live]


def prefill_round(runner: Runner, prompt: Sequence[int], repeats: int) -> list[float]:
    """Milliseconds from a prompt to its first token, `repeats` times after one that warms up."""
    (slot,) = pick_slots(runner.layout, 1, len(prompt) + 1)
    times = [_prefilled(runner, prompt, slot, limit=1) for _ in range(1 + repeats)]
    return times[1:]


def decode_round(
    runner: Runner, prompt: Sequence[int], *, live: int, new_tokens: int, steps: int
) -> list[float]:
    """Milliseconds per step in which each of `live` slots makes one token, prefill left out.

    Args:
      prompt: goes into every slot. steps: tokens a row per dispatch.

    Raises:
      ConfigError: too few new tokens to time anything, or too few slots.
    """
    dispatches = (new_tokens - 1) // steps
    if dispatches <= WARM:
        least = (WARM + 1) * steps + 1
        raise ConfigError(f"new-tokens is {new_tokens}: at least {least} are needed to time a step")
    slots = pick_slots(runner.layout, live, len(prompt) + new_tokens)
    for slot in slots:
        _prefilled(runner, prompt, slot, limit=new_tokens)
    return time_decode(runner, slots, dispatches, steps)


def time_decode(runner: Runner, slots: Sequence[int], dispatches: int, steps: int) -> list[float]:
    """Milliseconds a step of these slots, which are live and have tokens to go for all of it.

    Dispatch k + 1 is made before k is read, as an engine does; the first `WARM` do not count.
    """
    slots, quotas = list(slots), dict.fromkeys(slots, steps)
    stamps = [time.perf_counter()]
    pending = runner.decode(steps, quotas)
    for _ in range(dispatches - 1):
        following = runner.decode(steps, quotas)
        pending.result()
        stamps.append(time.perf_counter())
        pending = following
    last = pending.result().tokens[:steps]
    stamps.append(time.perf_counter())
    assert (last[:, slots] >= 0).all(), "a slot ended before its limit"
    return [
        1e3 * (after - before) / steps
        for before, after in zip(stamps[WARM:], stamps[WARM + 1 :], strict=False)
    ]


def _prefilled(runner: Runner, prompt: Sequence[int], slot: int, limit: int) -> float:
    """Put a prompt into a slot; milliseconds until its first token was read."""
    start = time.perf_counter()
    for work in cut_prompt(runner, prompt, slot=slot, limit=limit, params=_GREEDY):
        pending = runner.prefill([work])
    assert pending.result().tokens[0, slot] >= 0
    return 1e3 * (time.perf_counter() - start)
