"""How long a decode step and a prefill chunk take, on the devices, at their worst: rings full."""

import time
from collections.abc import Sequence
from typing import Any

from tpuinfer.benchmark.rounds import spread
from tpuinfer.benchmark.steps import WARM, time_decode
from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import PrefillWork, Runner

_GREEDY = SamplingParams(temperature=0)
_STEPS, _DISPATCHES, _CHUNKS = 12, 6, 5
"""The least decode steps, dispatches and chunks that are timed."""

_LEAST = 2
"""Dispatches below which a ring is too short to time a decode."""


def measure(runner: Runner, steps: int) -> tuple[list[float], list[float]]:
    """Milliseconds of decode steps with every slot live, and of full chunks, one a data shard.

    Every slot is opened near the end of its ring, with a chunk, which no engine would do: what lies
    before it is zeros or old, and takes as long to read as anything.

    Args:
      steps: of decode, in one dispatch.

    Returns:
      (decode, prefill); empty for what the rings are too short for.
    """
    layout = runner.layout
    dispatches = WARM + max(_DISPATCHES, -(-_STEPS // steps))
    room = min(layout.capacities) - 2
    dispatches = min(dispatches, (room - 1) // steps)
    new = dispatches * steps + 1
    if dispatches < WARM + _LEAST:
        return [], _prefill(runner, 1)
    chunks = _prefill(runner, new)
    return time_decode(runner, range(layout.slots), dispatches, steps), chunks


def in_short(samples: Sequence[float]) -> dict[str, Any] | None:
    """Samples as a record has them; None = there are none."""
    if not samples:
        return None
    found = spread(samples)
    figures = {"median": found.median, "p10": found.p10, "p90": found.p90}
    return {**figures, "samples": len(samples)}


def _prefill(runner: Runner, new: int) -> list[float]:
    """Open every slot, `new` tokens before the end of its ring; the times of the longest rings.

    Those of the first call are left out, and enough are made.
    """
    layout, times = runner.layout, []
    longest = layout.spans[-1]
    order = [*range(layout.per_shard)]
    order = [*[longest[0]] * max(1, 1 + _CHUNKS - len(longest)), *order]
    for at in order:
        works = [
            _work(runner, shard * layout.per_shard + at, new) for shard in range(layout.shards)
        ]
        start = time.perf_counter()
        runner.prefill(works).result()
        if at in longest:
            times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def _work(runner: Runner, slot: int, new: int) -> PrefillWork:
    """A full chunk at the end of a slot's ring, or as much as it holds."""
    end = runner.layout.capacity_of(slot) - new - 1
    size = min(runner.chunk, end)
    return PrefillWork(
        slot=slot,
        tokens=[1 + index % (runner.vocab - 1) for index in range(size)],
        start=end - size,
        bucket=runner.chunk,
        last=True,
        limit=new,
        stop_ids=(),
        seed=0,
        choice=0,
        params=_GREEDY,
    )
