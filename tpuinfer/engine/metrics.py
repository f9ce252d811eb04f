"""What the engine counts while it runs; the server exports it later. Pure Python, no clock."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpuinfer.engine.request import FinishReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the buckets of every histogram of times."""


class Histogram:
    """Counts of values by upper bound, in memory that never grows.

    `counts[i]` is how many values v had bounds[i-1] < v <= bounds[i]; the last entry holds those
    beyond every bound. `sum` and `count` are over all values.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.count += times

    def cumulative(self) -> list[tuple[float, int]]:
        """(bound, how many values were at most that), ending with infinity, as Prometheus asks."""
        total = 0
        rows = []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


@dataclass
class Metrics:
    """Counters since the start, and gauges as of the last call into the engine.

    Attributes:
      finished: requests that ended, by finish reason.
      prompt_tokens: tokens of the prompts that got a slot.
      generation_tokens: tokens generated.
      steps: engine steps that dispatched or read something.
      decode_rows: rows that wanted tokens, summed over decode dispatches. decode_slots: rows that
        there were, summed likewise.
      recompiles: compiles since warm-up; anything but 0 is an incident.
      ttft: from a request's arrival to its first token, seconds.
      inter_token: between two tokens of a request, seconds; tokens that arrive together share the
        time equally.
      queue: from a request's arrival to its slot, seconds.
      slots: rows there are. running: those taken (prefilling or decoding).
      waiting: requests that have no slot yet.
    """

    slots: int = 0
    running: int = 0
    waiting: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    decode_rows: int = 0
    decode_slots: int = 0
    recompiles: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "abort": 0}
    )
    ttft: Histogram = field(default_factory=Histogram)
    inter_token: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)

    @property
    def occupancy(self) -> float:
        """The part of all decoded rows that were wanted, in [0, 1]; 0 before the first decode."""
        return self.decode_rows / self.decode_slots if self.decode_slots else 0.0

    def decoded(self, rows: int) -> None:
        """A decode was dispatched in which `rows` of the slots want tokens."""
        self.decode_rows += rows
        self.decode_slots += self.slots

    def admitted(self, prompt_tokens: int, waited: float) -> None:
        """A request got a slot `waited` seconds after it arrived."""
        self.prompt_tokens += prompt_tokens
        self.queue.observe(waited)

    def generated(self, tokens: int, now: float, before: float | None, arrival: float) -> None:
        """A request got `tokens` tokens at `now`; its last ones came at `before`, if any."""
        self.generation_tokens += tokens
        if before is None:
            self.ttft.observe(now - arrival)
        else:
            self.inter_token.observe((now - before) / tokens, tokens)
