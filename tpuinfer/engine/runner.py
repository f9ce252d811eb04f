"""The few verbs between the scheduler and the accelerator.

`Runner` is what the engine needs; `tpuinfer.engine.device.DeviceRunner` answers it with compiled
programs, `tpuinfer.testing.fake.FakeRunner` with arithmetic that is done by hand. No jax here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import SamplingParams
from tpuinfer.programs.buckets import cut
from tpuinfer.programs.slots import SlotLayout


@dataclass(frozen=True)
class PrefillWork:
    """One chunk of one prompt, bound for one slot.

    Attributes:
      slot: global slot number; `SlotLayout` says where it lies and how long its ring is.
      tokens: the chunk's tokens, 1 <= len(tokens) <= bucket.
      start: position of tokens[0] in the prompt; 0 (re)opens the slot.
      bucket: the padded width the chunk runs at, by the prompt's length alone.
      last: the prompt ends with this chunk: sample its first token and let the slot decode.
      limit: the most tokens the row may generate, the first one included (>= 1).
      stop_ids: token ids that end the row, at most MAX_STOP_IDS.
      seed: in [0, 2**32).
      choice: enters the random key beside the seed.
      following: the prompt's token after the chunk, -1 behind the last one; what the chunk's last
        row is scored against where prompt_logprobs asks for scores.
      constrained: the row picks among the tokens of its mask only; see `Runner.constrain`.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    bucket: int
    last: bool
    limit: int
    stop_ids: tuple[int, ...]
    seed: int
    choice: int
    params: SamplingParams
    following: int = -1
    constrained: bool = False


@dataclass(frozen=True)
class PromptScores:
    """Log-probabilities of a prompt's own tokens, from one chunk of m tokens.

    Entry j is of the token that follows the chunk's j-th, given all up to that one. The last chunk
    has one entry less: what follows its last token is generated.

    Attributes:
      logprobs: [m] float32, or [m - 1].
      top_ids, top_logprobs: [m, TOP] likewise, as in `StepTokens`.
    """

    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class StepTokens:
    """What one dispatch produced.

    Attributes:
      tokens: [n, slots] int32; -1 where a slot produced nothing at that step. n is at least the
        number of steps asked for.
      logprobs: [n, slots] float32; log-probability of each token under the model's own
        distribution (temperature 1, nothing cut); only meaningful for rows that asked.
      top_ids, top_logprobs: [n, slots, TOP] int32 and float32; the most likely tokens, best first,
        equal ones by lowest id; id -1 beyond what the row asked for. None when no row of the
        dispatch asked for any.
      prompts: of a prefill, the scores of each slot whose request asked for prompt_logprobs.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32] | None = None
    top_logprobs: NDArray[np.float32] | None = None
    prompts: Mapping[int, PromptScores] = field(default_factory=dict)


class Pending(Protocol):
    """A dispatch on its way; `result` waits for it."""

    def result(self) -> StepTokens: ...


class Runner(Protocol):
    """Fixed-shape prefill and decode over slots; state stays behind this interface.

    Dispatches take effect in the order they are made.

    Attributes:
      layout: how many slots there are, where, and how long their rings are.
      rolls: a row whose ring is full goes on, forgetting its oldest tokens; else it must end.
      chunk: tokens in a full prefill chunk. buckets: compiled widths, ascending; the last is chunk.
      vocab: ids that the model scores.
    """

    layout: SlotLayout
    rolls: bool
    chunk: int
    buckets: tuple[int, ...]
    vocab: int

    @property
    def prefill_rows(self) -> Mapping[int, int]:
        """Bucket -> the most rows per data shard that one prefill of it takes."""

    @property
    def recompiles(self) -> int:
        """Compiles since warm-up; 0, or something is wrong."""

    def prefill(self, work: Sequence[PrefillWork]) -> Pending:
        """Run one chunk each for up to `prefill_rows` slots per data shard, all of one bucket.

        The result has n = 1 and a token for each slot whose work is `last`.
        """

    def decode(self, steps: int, quotas: Mapping[int, int]) -> Pending:
        """Run up to `steps` tokens for every slot of `quotas` that is still alive on the device.

        A slot takes at most its quota of tokens, 0 <= quota <= steps: one of 0 waits. A row stops
        by itself after a stop id or at its limit (that last token is returned; later steps give
        -1). A slot that is not named is dead from here on, until a prefill reopens it.
        """

    def constrain(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        """From the next dispatch on, these slots pick among the tokens of their masks only.

        Each mask is [ceil(vocab / 32)] int32, as `Constraint.fill` writes it; at least one bit of
        a token is set. A slot whose work is `constrained` must have a mask before each token that
        it picks; the masks of other slots change nothing.
        """

    def update(self, params: Any) -> None:
        """Take other weights, of the same names, shapes, dtypes and places, from the next dispatch.

        Raises:
          RequestError: they differ in one of these.
        """


def cut_prompt(
    runner: Runner,
    prompt: Sequence[int],
    *,
    slot: int,
    limit: int,
    params: SamplingParams,
    stop_ids: tuple[int, ...] = (),
    choice: int = 0,
) -> list[PrefillWork]:
    """The chunks of a prompt, as an engine would send them; the seed is that of `params`, or 0."""
    pieces = cut(len(prompt), runner.chunk, runner.buckets)
    return [
        PrefillWork(
            slot=slot,
            tokens=prompt[piece.start : piece.start + piece.size],
            start=piece.start,
            bucket=piece.bucket,
            last=piece is pieces[-1],
            limit=limit,
            stop_ids=stop_ids,
            seed=params.seed or 0,
            choice=choice,
            params=params,
            following=prompt[end] if (end := piece.start + piece.size) < len(prompt) else -1,
        )
        for piece in pieces
    ]
