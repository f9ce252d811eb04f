"""One request as the scheduler sees it, and the dispatches it plans. Pure Python."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import Phase, Request
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.programs.buckets import Chunk

Mask = NDArray[np.int32]
"""Which tokens may be picked, as `Runner.constrain` takes it."""


@dataclass(eq=False, slots=True)
class Job:
    """One request as the scheduler sees it.

    Attributes:
      prompt: its tokens, whatever the caller does to the request meanwhile.
      limit: the most tokens it may generate, >= 1.
      need: tokens its ring must hold, at most those of the longest.
      stop_ids: token ids that end its row on the device.
      seed: in [0, 2**32).
      chunks: its prompt, cut.
      order: its place among all that were ever added.
      slot: where it runs, while it is prefilling or decoding. admitted: when it got it, seconds.
      prefilled: chunks dispatched. promised: generated tokens dispatched, read or not, <= limit.
      mask: of a constrained request, what its next token is picked with, once that is known; a plan
        in which it picks takes it away.
    """

    request: Request
    prompt: tuple[int, ...]
    limit: int
    need: int
    stop_ids: tuple[int, ...]
    seed: int
    chunks: tuple[Chunk, ...]
    phase: Phase = Phase.WAITING
    order: int = -1
    slot: int = -1
    admitted: float = 0.0
    prefilled: int = 0
    promised: int = 0
    mask: Mask | None = None

    @property
    def constrained(self) -> bool:
        return self.request.constraint is not None

    @property
    def ready(self) -> bool:
        """Whether it can pick its next token."""
        return self.mask is not None or not self.constrained

    @property
    def written(self) -> int:
        """Tokens of the prompt and the answer dispatched so far."""
        if not self.prefilled:
            return 0
        chunk = self.chunks[self.prefilled - 1]
        return chunk.start + chunk.size + self.promised

    @property
    def next_chunk(self) -> Chunk:
        """The chunk of the prompt to be dispatched next."""
        return self.chunks[self.prefilled]

    def next_work(self) -> PrefillWork:
        """The next chunk, as the runner takes it."""
        chunk = self.next_chunk
        end = chunk.start + chunk.size
        return PrefillWork(
            slot=self.slot,
            tokens=self.prompt[chunk.start : end],
            start=chunk.start,
            bucket=chunk.bucket,
            last=self.prefilled == len(self.chunks) - 1,
            limit=self.limit,
            stop_ids=self.stop_ids,
            seed=self.seed,
            choice=self.request.choice,
            params=self.request.params,
            following=self.prompt[end] if end < len(self.prompt) else -1,
            constrained=self.constrained,
        )


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One prefill dispatch; all by slot.

    Attributes:
      rows: the jobs whose first token it samples.
      scored: the jobs that asked for log-probabilities of the chunk.
      masks: what those of `rows` that are constrained pick with.
      background: whether its jobs are background requests; they are all of one kind.
    """

    work: list[PrefillWork]
    rows: dict[int, Job]
    scored: dict[int, Job]
    masks: dict[int, Mask]
    background: bool


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One decode dispatch; all by slot.

    Attributes:
      rows: the jobs it generates for.
      quotas: the most tokens for each of them, and 0 for those that wait for a mask.
      masks: what those of `rows` that are constrained pick with.
    """

    steps: int
    rows: dict[int, Job]
    quotas: dict[int, int]
    masks: dict[int, Mask]
