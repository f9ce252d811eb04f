"""The runner that computes: compiled programs over params and state on a mesh."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import MAX_STOP_IDS, SamplingParams
from tpuinfer.engine.runner import Pending, PrefillWork, StepTokens
from tpuinfer.programs.compile import Program
from tpuinfer.programs.prefill import abstract_input
from tpuinfer.programs.state import DecodeState

_EVERY_KIND = SamplingParams(temperature=1.0, top_p=0.5, top_k=5, min_p=0.01, logprobs=0)
"""Sampling that takes every branch of the programs."""


class _Decoding:
    """A decode on its way: tokens and log-probabilities [n, slots]."""

    def __init__(self, tokens: jax.Array, logprobs: jax.Array) -> None:
        self._tokens, self._logprobs = tokens, logprobs
        for array in (tokens, logprobs):
            array.copy_to_host_async()

    def result(self) -> StepTokens:
        return StepTokens(_on_host(self._tokens), _on_host(self._logprobs))


class _Prefilling:
    """A prefill on its way: results per row, to be spread over the slots they belong to."""

    def __init__(
        self, tokens: jax.Array, logprobs: jax.Array, slot_of_row: NDArray[np.int32], slots: int
    ) -> None:
        self._tokens, self._logprobs = tokens, logprobs
        self._slot_of_row, self._slots = slot_of_row, slots
        for array in (tokens, logprobs):
            array.copy_to_host_async()

    def result(self) -> StepTokens:
        tokens = np.full((1, self._slots), -1, np.int32)
        logprobs = np.zeros((1, self._slots), np.float32)
        tokens[0, self._slot_of_row] = _on_host(self._tokens)
        logprobs[0, self._slot_of_row] = _on_host(self._logprobs)
        return StepTokens(tokens, logprobs)


class DeviceRunner:
    """`Runner` over compiled programs. It owns the state, which every call donates and replaces.

    Attributes:
      slots, shards, capacity, chunk, buckets: as `Runner` says.
      programs: by name, the closed set that this runner ever calls.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array],
        state: DecodeState,
        programs: Mapping[str, Program],
        *,
        shards: int,
        capacity: int,
        buckets: tuple[int, ...],
        steps: int,
    ) -> None:
        self.slots = state.token.shape[0]
        self.shards = shards
        self.capacity = capacity
        self.chunk = buckets[-1]
        self.buckets = buckets
        self.programs = dict(programs)
        self._steps = steps
        self._params = dict(params)
        self._state = state

    def prefill(self, work: Sequence[PrefillWork]) -> Pending:
        """Run one chunk for at most one slot per data shard; see `Runner.prefill`."""
        given = _idle_input(self.slots, self.shards, work[0].bucket)
        for item in work:
            row = item.slot // (self.slots // self.shards)
            assert given.length[row] == 0, f"two works on data shard {row}"
            assert item.bucket == work[0].bucket, "works of different buckets"
            assert 0 < len(item.tokens) <= item.bucket
            assert item.start + len(item.tokens) < self.capacity
            _fill(given, row, item)
        program = self.programs[f"prefill_{work[0].bucket}"]
        self._state, tokens, logprobs = program.call(self._params, self._state, given)
        return _Prefilling(tokens, logprobs, np.asarray(given.slot), self.slots)

    def decode(self, steps: int, active: Sequence[int]) -> Pending:
        """Run up to `steps` tokens for the slots in `active`; see `Runner.decode`."""
        assert 0 < steps <= self._steps, f"{steps} steps asked, compiled for {self._steps}"
        wanted = np.zeros(self.slots, bool)
        wanted[list(active)] = True
        program = self.programs["decode"]
        self._state, out = program.call(self._params, self._state, np.int32(steps), wanted)
        return _Decoding(out.tokens, out.logprobs)

    def add(self, program: Program) -> None:
        """Take a program in and run it once, so that no request pays for what a first run sets up.

        The run is a real one, in slot 0 and with every kind of sampling; it leaves the slot dead.
        Prefill programs come first: decode does nothing unless a slot is live.
        """
        self.programs[program.name] = program
        if program.name == "decode":
            self.decode(1, [0]).result()
            return
        width = int(program.name.removeprefix("prefill_"))
        work = PrefillWork(
            slot=0,
            tokens=(0,),
            start=0,
            bucket=width,
            last=True,
            limit=2,
            stop_ids=(),
            seed=0,
            choice=0,
            params=_EVERY_KIND,
        )
        self.prefill([work]).result()


def _idle_input(slots: int, shards: int, width: int) -> Any:
    """A `PrefillInput` of numpy arrays in which no row has anything to do."""
    abstract = abstract_input(shards, width, MAX_STOP_IDS)
    given = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    given.slot[:] = np.arange(shards) * (slots // shards)
    given.sampling.top_p[:] = 1
    given.stops[:] = -1
    return given


def _fill(given: Any, row: int, item: PrefillWork) -> None:
    """Write one work into its row of an input that holds numpy arrays."""
    assert len(item.stop_ids) <= MAX_STOP_IDS
    given.tokens[row, : len(item.tokens)] = item.tokens
    given.slot[row] = item.slot
    given.start[row] = item.start
    given.length[row] = len(item.tokens)
    given.last[row] = item.last
    given.limit[row] = item.limit
    given.stops[row, : len(item.stop_ids)] = item.stop_ids
    sampling, params = given.sampling, item.params
    sampling.temperature[row] = params.temperature
    sampling.top_p[row] = params.top_p
    sampling.min_p[row] = params.min_p
    sampling.top_k[row] = params.top_k
    sampling.seed[row] = item.seed
    sampling.choice[row] = item.choice
    sampling.logprobs[row] = params.logprobs is not None


def _on_host(array: jax.Array) -> NDArray[Any]:
    return np.asarray(array.addressable_data(0))
