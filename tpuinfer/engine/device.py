"""The runner that computes: compiled programs over params and state on a mesh."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.request import MAX_STOP_IDS
from tpuinfer.engine.runner import Pending, PrefillWork, StepTokens
from tpuinfer.programs.closed_set import decode_name, prefill_name
from tpuinfer.programs.compile import Program
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.manifest import Entry
from tpuinfer.programs.output import Output, unpack
from tpuinfer.programs.prefill import abstract_input
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.programs.state import DecodeState

_NO_GUARD = contextlib.nullcontext()


class _Pending:
    """A dispatch on its way: what its rows produce, to be spread over the slots they belong to."""

    def __init__(
        self,
        out: Output,
        rows: NDArray[Any] | None,
        slots: NDArray[Any] | None,
        wants_top: bool,
        runner: "DeviceRunner",
    ) -> None:
        """`rows` of the output belong to `slots`; None = all of them, in order."""
        self._out, self._rows, self._slots, self._runner = out, rows, slots, runner
        self._wants_top = wants_top
        out.packed.copy_to_host_async()
        if wants_top:
            out.top.copy_to_host_async()

    def result(self) -> StepTokens:
        with self._runner.watching():
            packed = np.asarray(self._out.packed.addressable_data(0))
            top = np.asarray(self._out.top.addressable_data(0)) if self._wants_top else None
        tokens, logprobs, ids, scores = unpack(packed, top)
        return StepTokens(
            self._spread(tokens, -1),
            self._spread(logprobs, 0),
            None if ids is None else self._spread(ids, -1),
            None if scores is None else self._spread(scores, 0),
        )

    def _spread(self, values: NDArray[Any], empty: int) -> NDArray[Any]:
        """[n, R, ...] by row to [n, slots, ...] by slot."""
        if self._slots is None:
            return values
        slots = self._runner.layout.slots
        spread = np.full((values.shape[0], slots, *values.shape[2:]), empty, values.dtype)
        spread[:, self._slots] = values[:, self._rows]
        return spread


class DeviceRunner:
    """`Runner` over compiled programs. It owns the state, which every call donates and replaces.

    Attributes:
      layout, rolls, chunk, buckets: as `Runner` says.
      programs: by name, the closed set that this runner ever calls.
      guard: what counts compiles; None while warming up.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array],
        state: DecodeState,
        programs: Mapping[str, Program],
        *,
        layout: SlotLayout,
        buckets: tuple[int, ...],
        steps: int,
        rolls: bool = False,
    ) -> None:
        assert layout.slots == state.token.shape[0]
        self.layout = layout
        self.rolls = rolls
        self.chunk = buckets[-1]
        self.buckets = buckets
        self.programs = dict(programs)
        self.guard: CompileGuard | None = None
        self._steps = steps
        self._params = dict(params)
        self._state = state
        self._with_top: set[int] = set()

    @property
    def prefill_rows(self) -> Mapping[int, int]:
        return {width: max(self._prefills(width)) for width in self.buckets}

    @property
    def recompiles(self) -> int:
        return 0 if self.guard is None else self.guard.recompiles

    @property
    def manifest(self) -> list[Entry]:
        """What the programs are fixed to and what each of them cost."""
        return [program.entry for program in self.programs.values()]

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Around whatever the serving path does: compiles in it are counted."""
        return _NO_GUARD if self.guard is None else self.guard.watching()

    def prefill(self, work: Sequence[PrefillWork], rows: int | None = None) -> Pending:
        """Run one chunk for each of several slots; see `Runner.prefill`.

        `rows` per data shard: which program; None = the one with the fewest that suffice.
        """
        bucket, shards = work[0].bucket, self.layout.shards
        by_shard: list[list[PrefillWork]] = [[] for _ in range(shards)]
        for item in work:
            self._check(item, bucket)
            by_shard[self.layout.shard_of(item.slot)].append(item)
        need = max(map(len, by_shard))
        sizes = [rows] if rows else self._prefills(bucket)
        rows = min((one for one in sizes if one >= need), default=0)
        assert rows, f"{need} works on one data shard: at most {max(sizes)}"
        given = _idle_input(self.layout, rows, bucket)
        used: list[int] = []
        slots: list[int] = []
        for shard, items in enumerate(by_shard):
            for row, item in enumerate(items, shard * rows):
                _fill(given, row, item)
                used.append(row)
                slots.append(item.slot)
                top = (item.params.logprobs or 0) > 0
                (self._with_top.add if top else self._with_top.discard)(item.slot)
        assert len(set(slots)) == len(slots), f"slots {slots} are not distinct"
        out = self._dispatch(prefill_name(rows, bucket), given)
        top = any(item.last and item.slot in self._with_top for item in work)
        return _Pending(out, np.array(used), np.array(slots), top, self)

    def decode(self, steps: int, active: Sequence[int], rows: int | None = None) -> Pending:
        """Run up to `steps` tokens for the slots in `active`; see `Runner.decode`.

        `rows` per data shard: which program, 0 = that of all slots; None = the narrowest that
        suffices.
        """
        assert 0 < steps <= self._steps, f"{steps} steps asked, compiled for {self._steps}"
        wanted = np.zeros(self.layout.slots, bool)
        wanted[list(active)] = True
        top = not self._with_top.isdisjoint(active)
        by_shard: list[list[int]] = [[] for _ in range(self.layout.shards)]
        for slot in active:
            by_shard[self.layout.shard_of(slot)].append(slot)
        if rows is None:
            need = max(map(len, by_shard))
            rows = min((one for one in self._narrow_decodes() if one >= need), default=0)
        if rows == 0:
            out = self._dispatch(decode_name(), np.int32(steps), wanted)
            return _Pending(out, None, None, top, self)
        named = np.full(rows * self.layout.shards, self.layout.slots, np.int32)
        for shard, slots in enumerate(by_shard):
            named[shard * rows : shard * rows + len(slots)] = slots
        out = self._dispatch(decode_name(rows), np.int32(steps), wanted, named)
        used = np.flatnonzero(named < self.layout.slots)
        return _Pending(out, used, named[used], top, self)

    def _dispatch(self, name: str, *given: Any) -> Output:
        program, guard = self.programs[name], self.guard
        arguments = (self._params, self._state, *given)
        if guard is None:
            self._state, out = program.call(*arguments)
        else:
            with guard.watching():
                self._state, out = guard.call(program, *arguments)
        result: Output = out
        return result

    def _prefills(self, width: int) -> list[int]:
        """Rows per data shard of the programs there are for a bucket."""
        ending = f"x{width}"
        found = (name.removesuffix(ending) for name in self.programs if name.endswith(ending))
        return [int(name.removeprefix("prefill_")) for name in found]

    def _narrow_decodes(self) -> list[int]:
        narrow = (name for name in self.programs if name.startswith("decode_"))
        return [int(name.removeprefix("decode_")) for name in narrow]

    def _check(self, item: PrefillWork, bucket: int) -> None:
        assert item.bucket == bucket, "works of different buckets"
        assert 0 < len(item.tokens) <= bucket
        capacity = self.layout.capacity_of(item.slot)
        assert self.rolls or item.start + len(item.tokens) < capacity, "beyond the ring"


def _idle_input(layout: SlotLayout, rows: int, width: int) -> Any:
    """A `PrefillInput` of numpy arrays in which no row has anything to do."""
    abstract = abstract_input(rows * layout.shards, width, MAX_STOP_IDS)
    given = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    given.slot[:] = np.repeat(np.arange(layout.shards) * layout.per_shard, rows)
    given.sampling.top_p[:] = 1
    given.sampling.logprobs[:] = -1
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
    sampling.logprobs[row] = -1 if params.logprobs is None else params.logprobs
