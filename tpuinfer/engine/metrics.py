"""What the engine counts while it runs; the server exports it later. Pure Python, no clock.

Gauges and token counters are over all requests, so that slots and tokens add up; histograms observe
interactive requests only, those that somebody waits for.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from tpuinfer.engine.request import FinishReason

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the buckets of every histogram of times."""

TOKENS = (*(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 10**6)
"""Upper bounds of the buckets of every histogram of token counts."""


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
      slots: rows there are. running: those taken (prefilling or decoding).
      waiting: requests that have no slot yet. waiting_tokens: tokens of their prompts.
      background_running, background_waiting: those of `running` and of `waiting` that are
        background requests.
      ring_capacity: tokens that all rings hold together. ring_tokens: those taken.
      version: how often the weights were exchanged.
      steps: engine steps that dispatched or read something.
      prompt_tokens: tokens of the prompts that got a slot.
      generation_tokens: tokens generated. Both with those of requests that were preempted later.
      decode_rows: rows that wanted tokens, summed over decode dispatches. decode_slots: rows that
        there were, summed likewise.
      recompiles: compiles since warm-up; anything but 0 is an incident.
      finished: requests that ended, by finish reason.
      ttft: from a request's arrival to its first token, seconds.
      inter_token: between two tokens of a request, seconds; tokens that arrive together share the
        time equally.
      queue: from a request's arrival to its slot, seconds.
      prefill: from its slot to its first token, seconds; decode: from there to its last one.
      latency: from its arrival to its last token, seconds.
      prompt_lengths: tokens of each prompt that got a slot.
      generation_lengths: tokens of each answer. Like prefill, decode and latency, only of requests
        that ended by themselves: "stop" or "length".
    """

    slots: int = 0
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    background_running: int = 0
    background_waiting: int = 0
    ring_capacity: int = 0
    ring_tokens: int = 0
    version: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    decode_rows: int = 0
    decode_slots: int = 0
    recompiles: int = 0
    finished: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(get_args(FinishReason), 0)
    )
    ttft: Histogram = field(default_factory=Histogram)
    inter_token: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    prefill: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    prompt_lengths: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    generation_lengths: Histogram = field(default_factory=lambda: Histogram(TOKENS))

    @property
    def occupancy(self) -> float:
        """The part of all decoded rows that were wanted, in [0, 1]; 0 before the first decode."""
        return self.decode_rows / self.decode_slots if self.decode_slots else 0.0

    @property
    def preemptions(self) -> int:
        """Background requests that had to give up their slots."""
        return self.finished["preempted"]

    @property
    def ring_usage(self) -> float:
        """The part of all rings that is taken, in [0, 1]."""
        return self.ring_tokens / self.ring_capacity if self.ring_capacity else 0.0

    def decoded(self, rows: int) -> None:
        """A decode was dispatched in which `rows` of the slots want tokens."""
        self.decode_rows += rows
        self.decode_slots += self.slots

    def admitted(self, prompt_tokens: int, waited: float, *, background: bool = False) -> None:
        """A request got a slot `waited` seconds after it arrived."""
        self.prompt_tokens += prompt_tokens
        if not background:
            self.prompt_lengths.observe(prompt_tokens)
            self.queue.observe(waited)

    def generated(
        self,
        tokens: int,
        now: float,
        before: float | None,
        arrival: float,
        *,
        background: bool = False,
    ) -> None:
        """A request got `tokens` tokens at `now`; its last ones came at `before`, if any."""
        self.generation_tokens += tokens
        if background:
            return
        if before is None:
            self.ttft.observe(now - arrival)
        else:
            self.inter_token.observe((now - before) / tokens, tokens)

    def answered(
        self, tokens: int, *, arrival: float, admitted: float, first: float, last: float
    ) -> None:
        """An interactive request ended by itself after `tokens` tokens, the first at `first`."""
        self.generation_lengths.observe(tokens)
        self.prefill.observe(first - admitted)
        self.decode.observe(last - first)
        self.latency.observe(last - arrival)
