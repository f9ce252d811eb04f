"""Run each program once before the first request, and admit only those that keep the bits.

Programs that differ in how many rows they take (several prompts in one prefill, a decode of few
slots) are chosen by load, so they may only serve where they give a row the same bits. Whether they
do is the platform's affair; here it is tried, with the very programs and weights that will serve.
"""

import logging
import random

from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.request import TOP_LOGPROBS, SamplingParams
from tpuinfer.engine.runner import PrefillWork, StepTokens
from tpuinfer.programs.compile import Program

_log = logging.getLogger(__name__)

_EVERY_KIND = SamplingParams(
    temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, logprobs=TOP_LOGPROBS
)
"""Sampling that takes every branch of the programs."""

_GREEDY = SamplingParams(temperature=0, logprobs=TOP_LOGPROBS)


class WarmUp:
    """Takes programs into a runner, one after the other, in the order of the closed set."""

    def __init__(self, runner: DeviceRunner, vocab: int) -> None:
        self._runner = runner
        self._chance = random.Random(0)
        self._vocab = vocab

    def add(self, program: Program) -> None:
        """Run a program with live rows, so that no request pays for what a first run sets up.

        One that other programs stand in for (fewer rows) is dropped again if its bits differ.
        """
        runner, name = self._runner, program.name
        runner.programs[name] = program
        kind, _, size = name.partition("_")
        if kind == "prefill":
            rows, width = map(int, size.split("x"))
            same = self._try_prefill(rows, width)
        else:
            same = self._try_decode(int(size or 0))
        if not same:
            del runner.programs[name]
            _log.info("program %s gives other bits than its narrower kin here: not used", name)

    def _try_prefill(self, rows: int, width: int) -> bool:
        works = [self._work(slot, width) for slot in self._slots(rows)]
        together = self._runner.prefill(works, rows).result()
        if rows == 1:
            return True
        return all(
            _equal(self._runner.prefill([work], 1).result(), together, work.slot)
            for work in (works[0], works[-1])
        )

    def _try_decode(self, rows: int) -> bool:
        """`rows` of 0 is the decode of all slots, against which the narrow ones are compared."""
        width = self._runner.buckets[0]
        works = [self._work(slot, width) for slot in self._slots(2 if rows else 1)]
        answers = []
        for program in sorted({rows, 0}, reverse=True):
            for work in works:
                self._runner.prefill([work], 1)
            answers.append(self._runner.decode(1, self._slots(len(works)), program).result())
        return all(_equal(answers[0], answers[-1], work.slot) for work in works)

    def _slots(self, count: int) -> list[int]:
        """Slots of the first data shard, the last ones: of the longest rings."""
        last = self._runner.layout.per_shard
        return list(range(max(last - count, 0), last))

    def _work(self, slot: int, width: int) -> PrefillWork:
        capacity = self._runner.layout.capacity_of(slot)
        room = width if self._runner.rolls else min(width, capacity - 2)
        size = self._chance.randint(max(1, room // 2), room)
        return PrefillWork(
            slot=slot,
            tokens=self._chance.choices(range(self._vocab), k=size),
            start=0,
            bucket=width,
            last=True,
            limit=2,
            stop_ids=(),
            seed=slot,
            choice=0,
            params=_EVERY_KIND if slot % 2 else _GREEDY,
        )


def _equal(one: StepTokens, other: StepTokens, slot: int) -> bool:
    """Whether a slot has the same tokens and the same bits of all log-probabilities in both."""
    assert one.top_logprobs is not None
    assert other.top_logprobs is not None
    return all(
        a[:1, slot].tobytes() == b[:1, slot].tobytes()
        for a, b in (
            (one.tokens, other.tokens),
            (one.logprobs, other.logprobs),
            (one.top_logprobs, other.top_logprobs),
        )
    )
