"""Run each program once before the first request, and admit only those that keep the bits.

Programs that differ in how many rows they take (several prompts in one prefill, a decode of few
slots) are chosen by load, so they may only serve where they give a row the same bits. Whether they
do is the platform's affair; here it is tried, with the very programs and weights that will serve.
"""

import dataclasses
import logging
import random

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.request import TOP_LOGPROBS, SamplingParams
from tpuinfer.engine.runner import PrefillWork, StepTokens
from tpuinfer.ops.steering import WORD
from tpuinfer.programs.closed_set import BIAS, MASK
from tpuinfer.programs.compile import Program

_log = logging.getLogger(__name__)

_STOP_IDS = (1, 2)

_EVERY_KIND = SamplingParams(
    temperature=1.0,
    top_p=0.9,
    top_k=50,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    logit_bias={0: -1.0, 3: 2.0},
    max_tokens=None,
    min_tokens=2**16,
    logprobs=TOP_LOGPROBS,
    prompt_logprobs=TOP_LOGPROBS,
)
"""Sampling that takes every branch of the programs; its rows are constrained as well."""

_STEPS = 8
"""Decode steps over which programs are compared: a difference of one bit is often rounded away."""

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
        if name == MASK:
            runner.constrain(dict.fromkeys(range(runner.layout.slots), self._mask()))
            same = True
        elif name == BIAS:
            same = True  # the first prefill runs it
        elif kind == "prefill":
            rows, width = map(int, size.split("x"))
            same = self._try_prefill(rows, width)
        else:
            same = self._try_decode(int(size or 0))
        if not same:
            del runner.programs[name]
            _log.info("program %s would change a row's bits on this platform: not used", name)

    def _try_prefill(self, rows: int, width: int) -> bool:
        """Prompts of two chunks where the ring has room: the second one reads what the first wrote.

        The last of the rows is compared with the program of one row.
        """
        works = [self._work(slot, width) for slot in self._slots(rows)]
        if rows == 1:
            self._runner.prefill(works, rows).result()
            return True
        together = self._prefill_chunks(works, rows)
        alone = self._prefill_chunks(works[-1:], 1)
        return _equal(alone, together, works[-1].slot, works[-1].slot)

    def _prefill_chunks(self, works: list[PrefillWork], rows: int) -> StepTokens:
        """What prompts give: the tokens of their `works`, behind a chunk where there is room."""
        runner, width = self._runner, works[0].bucket
        if 2 * width + _STEPS < runner.layout.capacities[0]:
            first = [
                dataclasses.replace(work, tokens=[work.slot % self._vocab] * width, last=False)
                for work in works
            ]
            runner.prefill(first, rows)
            works = [dataclasses.replace(work, start=width) for work in works]
        return runner.prefill(works, rows).result()

    def _try_decode(self, rows: int) -> bool:
        """`rows` of 0 is the decode of all slots, against which the narrow ones are compared.

        The same prompts decode in the last slots through the narrow program and in the first ones
        through the other: no two of them share a slot, or a class of slots if there are several.
        """
        runner, width = self._runner, self._runner.buckets[0]
        last = self._slots(rows or 1)
        works = [self._work(slot, width) for slot in last]
        if not rows:
            runner.prefill(works, 1)
            runner.decode(1, dict.fromkeys(last, 1), 0).result()
            return True
        twins = [dataclasses.replace(work, slot=slot) for slot, work in enumerate(works)]
        for work in works:
            runner.prefill([work], 1)
        narrow = [runner.decode(1, dict.fromkeys(last, 1), rows).result() for _ in range(_STEPS)]
        for work in twins:
            runner.prefill([work], 1)
        wide = [runner.decode(1, dict.fromkeys(range(rows), 1), 0).result() for _ in range(_STEPS)]
        return all(
            _equal(one, other, work.slot, twin.slot)
            for one, other in zip(narrow, wide, strict=True)
            for work, twin in zip(works, twins, strict=True)
        )

    def _mask(self) -> NDArray[np.int32]:
        """Every token but each seventh."""
        allowed = np.arange(-(-self._vocab // WORD) * WORD) % 7 > 0
        return np.packbits(allowed, bitorder="little").view(np.int32)

    def _slots(self, count: int) -> list[int]:
        """Slots of the first data shard, the last ones: of the longest rings."""
        last = self._runner.layout.per_shard
        return list(range(max(last - count, 0), last))

    def _work(self, slot: int, width: int) -> PrefillWork:
        room = min(width, self._runner.layout.capacities[0] - _STEPS - 1)
        size = self._chance.randint(max(1, room // 2), max(1, room))
        every = (self._runner.layout.per_shard - slot) % 2 == 1  # the last slot is never left out
        return PrefillWork(
            slot=slot,
            tokens=self._chance.choices(range(self._vocab), k=size),
            start=0,
            bucket=width,
            last=True,
            limit=min(_STEPS, self._runner.layout.capacities[0] - size - 1) + 1,
            stop_ids=_STOP_IDS,
            seed=slot,
            choice=0,
            params=_EVERY_KIND if every else _GREEDY,
            constrained=every,
        )


def _equal(one: StepTokens, other: StepTokens, slot: int, other_slot: int) -> bool:
    """Whether two slots have the same tokens and the same bits of all log-probabilities."""
    assert one.top_logprobs is not None
    assert other.top_logprobs is not None
    same = all(
        a[:1, slot].tobytes() == b[:1, other_slot].tobytes()
        for a, b in (
            (one.tokens, other.tokens),
            (one.logprobs, other.logprobs),
            (one.top_logprobs, other.top_logprobs),
        )
    )
    mine, theirs = one.prompts.get(slot), other.prompts.get(other_slot)
    if mine is None or theirs is None:
        return same and mine is theirs
    return same and all(
        a.tobytes() == b.tobytes()
        for a, b in (
            (mine.logprobs, theirs.logprobs),
            (mine.top_ids, theirs.top_ids),
            (mine.top_logprobs, theirs.top_logprobs),
        )
    )
