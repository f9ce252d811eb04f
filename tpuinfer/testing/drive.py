"""Prompts on a `Runner` by hand: cut, prefill, decode until nothing comes. No engine, no text."""

from collections.abc import Sequence
from typing import NamedTuple

from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import PrefillWork, Runner, cut_prompt

GREEDY = SamplingParams(temperature=0, logprobs=0)


class Answer(NamedTuple):
    """What one row generated: token ids, and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


def works(
    runner: Runner,
    prompt: Sequence[int],
    *,
    slot: int = 0,
    limit: int = 8,
    params: SamplingParams = GREEDY,
    stop_ids: tuple[int, ...] = (),
    choice: int = 0,
) -> list[PrefillWork]:
    """`cut_prompt` with what most tests want."""
    return cut_prompt(
        runner, prompt, slot=slot, limit=limit, params=params, stop_ids=stop_ids, choice=choice
    )


def run(runner: Runner, *rows: list[PrefillWork], steps: int = 1) -> list[Answer]:
    """Prefill the rows one after the other, then decode all until none gives a token any more.

    Each row is one prompt's `works`, in a slot of its own, and must end at its limit by itself.
    """
    answers = {row[0].slot: Answer([], []) for row in rows}
    for row in rows:
        for work in row:
            _take(answers, runner, [work])
    for _ in range(max(row[0].limit for row in rows)):
        if not _take(answers, runner, steps):
            break
    for row in rows:
        assert len(answers[row[0].slot].tokens) <= row[0].limit, f"slot {row[0].slot} goes on"
    return list(answers.values())


def _take(answers: dict[int, Answer], runner: Runner, what: list[PrefillWork] | int) -> bool:
    """Run one prefill, or that many decode steps, and keep the tokens; False if there were none."""
    if isinstance(what, int):
        pending = runner.decode(what, dict.fromkeys(answers, what))
    else:
        pending = runner.prefill(what)
    result = pending.result()
    taken = False
    for tokens, logprobs in zip(result.tokens.tolist(), result.logprobs.tolist(), strict=True):
        for slot, answer in answers.items():
            if tokens[slot] >= 0:
                answer.tokens.append(tokens[slot])
                answer.logprobs.append(logprobs[slot])
                taken = True
    return taken
