"""The engine's own time per step, with all that a device does faked by constants. No jax."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.accept import Tokenizer
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.engine.runner import PrefillWork, StepTokens
from tpuinfer.programs.slots import SlotLayout

_CHUNK = 64
_WARM = 20


class EchoRunner:
    """A `Runner` that takes no time: the tokens of a slot count up, whatever is asked.

    It ends no row, so requests must outlast the run. Attributes are as `Runner` says.
    """

    rolls = False
    recompiles = 0
    chunk = _CHUNK
    buckets: tuple[int, ...] = (_CHUNK,)

    def __init__(self, slots: int, vocab: int, capacity: int) -> None:
        self.layout = SlotLayout((slots,), (capacity,))
        self.prefill_rows: Mapping[int, int] = {_CHUNK: slots}
        self.vocab = vocab
        self._ids = np.arange(slots, dtype=np.int32) * 7919 % vocab
        self._logprobs = np.zeros((1, slots), np.float32)

    def prefill(self, work: Sequence[PrefillWork]) -> "Echo":
        tokens = np.full((1, self.layout.slots), -1, np.int32)
        for item in work:
            if item.last:
                tokens[0, item.slot] = self._ids[item.slot]
        return Echo(StepTokens(tokens, self._logprobs))

    def decode(self, steps: int, quotas: Mapping[int, int]) -> "Echo":
        tokens = np.full((steps, self.layout.slots), -1, np.int32)
        columns = list(quotas)
        for row in range(steps):
            self._ids = (self._ids + 1) % self.vocab
            tokens[row, columns] = self._ids[columns]
        return Echo(StepTokens(tokens, np.broadcast_to(self._logprobs, tokens.shape)))

    def constrain(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        """Nobody here is constrained."""

    def update(self, params: Any) -> None:
        """There are no weights."""


class Echo:
    """A dispatch that is there already."""

    def __init__(self, tokens: StepTokens) -> None:
        self._tokens = tokens

    def result(self) -> StepTokens:
        return self._tokens


def host_round(tokenizer: Tokenizer, *, slots: int, steps: int) -> list[float]:
    """Milliseconds of each of `steps` engine steps in which every slot streams one token."""
    length = steps + 4 * slots + _WARM  # more than a row makes before and while it is timed
    runner = EchoRunner(slots, tokenizer.vocab_size, capacity=length + 1)
    engine = Engine(runner, tokenizer)
    how = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
    for slot in range(slots):
        engine.add(Request(f"bench-{slot}", (slot % tokenizer.vocab_size,), how))
    for _ in range(2 * slots + 2):
        if len(engine.step()) == slots:
            break
    for _ in range(_WARM):
        engine.step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        deltas = engine.step()
        times.append(1e3 * (time.perf_counter() - start))
        assert len(deltas) == slots, f"{len(deltas)} of {slots} slots streamed"
    return times
