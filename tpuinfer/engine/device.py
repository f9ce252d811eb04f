"""The runner that computes: compiled programs over params and state on a mesh."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.engine.inputs import bias_entries, fill, idle_input
from tpuinfer.engine.runner import Pending, PrefillWork, PromptScores, StepTokens
from tpuinfer.errors import RequestError
from tpuinfer.ops.steering import Tables
from tpuinfer.programs.closed_set import BIAS, MASK, decode_name, prefill_name
from tpuinfer.programs.compile import Program
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.manifest import Entry
from tpuinfer.programs.output import Output, Tokens, unpack
from tpuinfer.programs.signature import differences
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.programs.state import DecodeState, shaped

_NO_GUARD = contextlib.nullcontext()


@dataclass(frozen=True)
class _Asked:
    """What to bring to the host, and where it belongs.

    Attributes:
      rows: of the output that belong to `slots`; None = all of them, in order.
      top: some row asked for the most likely tokens.
      scored: row, slot and number of tokens of each prompt whose scores were asked for.
    """

    rows: NDArray[Any] | None = None
    slots: NDArray[Any] | None = None
    top: bool = False
    scored: Sequence[tuple[int, int, int]] = ()


class _Pending:
    """A dispatch on its way: what its rows produce, to be spread over the slots they belong to."""

    def __init__(
        self, out: Output, asked: _Asked, runner: "DeviceRunner", prompt: Output | None = None
    ) -> None:
        """`prompt`: the scores of a prefill; None = nobody asked."""
        self._out, self._asked, self._runner, self._prompt = out, asked, runner, prompt
        self._sent = [out.packed, *([out.top] if asked.top else [])]
        if prompt is not None:
            self._sent += [prompt.packed, prompt.top]
        for array in self._sent:
            array.copy_to_host_async()

    def result(self) -> StepTokens:
        asked = self._asked
        with self._runner.watching():
            packed, *others = (np.asarray(array.addressable_data(0)) for array in self._sent)
        tokens, logprobs, ids, scores = unpack(packed, others.pop(0) if asked.top else None)
        return StepTokens(
            self._spread(tokens, -1),
            self._spread(logprobs, 0),
            None if ids is None else self._spread(ids, -1),
            None if scores is None else self._spread(scores, 0),
            _scores(unpack(*others), asked.scored) if others else {},
        )

    def _spread(self, values: NDArray[Any], empty: int) -> NDArray[Any]:
        """[n, R, ...] by row to [n, slots, ...] by slot."""
        if self._asked.slots is None:
            return values
        slots = self._runner.layout.slots
        spread = np.full((values.shape[0], slots, *values.shape[2:]), empty, values.dtype)
        spread[:, self._asked.slots] = values[:, self._asked.rows]
        return spread


def _scores(prompt: Tokens, scored: Sequence[tuple[int, int, int]]) -> dict[int, PromptScores]:
    """The scores of prompts by slot, from those of all rows."""
    ids, logprobs = prompt.top_ids, prompt.top_logprobs
    assert ids is not None
    assert logprobs is not None
    return {
        slot: PromptScores(prompt.logprobs[row, :size], ids[row, :size], logprobs[row, :size])
        for row, slot, size in scored
    }


class DeviceRunner:
    """`Runner` over compiled programs. It owns the state, which every call donates and replaces.

    Attributes:
      layout, rolls, chunk, buckets, vocab: as `Runner` says.
      programs: by name, the closed set that this runner ever calls.
      guard: what counts compiles; None while warming up.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array],
        state: DecodeState,
        tables: Tables,
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
        self.vocab = state.counts.shape[1]
        self.programs = dict(programs)
        self.guard: CompileGuard | None = None
        self._steps = steps
        self._params = dict(params)
        self._state = state
        self._tables = tables
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
        given = idle_input(self.layout, rows, bucket)
        placed = [
            (row, item)
            for shard, items in enumerate(by_shard)
            for row, item in enumerate(items, shard * rows)
        ]
        for row, item in placed:
            fill(given, row, item)
            self._open(item)
        slots = np.array([item.slot for _, item in placed])
        assert len({*slots.tolist()}) == len(slots), f"slots {slots} are not distinct"
        out = self._dispatch(prefill_name(rows, bucket), given)
        scored = [
            (row, item.slot, len(item.tokens) - (item.following < 0))
            for row, item in placed
            if item.params.prompt_logprobs is not None
        ]
        top = any(item.last and item.slot in self._with_top for item in work)
        asked = _Asked(np.array([row for row, _ in placed]), slots, top, scored)
        return _Pending(out.first, asked, self, out.prompt if scored else None)

    def _open(self, item: PrefillWork) -> None:
        """Note what the rest of the row's life must know, and send what its row has no room for."""
        top = (item.params.logprobs or 0) > 0
        (self._with_top.add if top else self._with_top.discard)(item.slot)
        if item.params.logit_bias and item.start == 0:
            entries = bias_entries(item.params)
            with self.watching():
                biases = self._call(BIAS, self._tables.biases, np.int32(item.slot), *entries)
                self._tables = dataclasses.replace(self._tables, biases=biases)

    def decode(self, steps: int, quotas: Mapping[int, int], rows: int | None = None) -> Pending:
        """Run up to `steps` tokens for the slots of `quotas`; see `Runner.decode`.

        `rows` per data shard: which program, 0 = that of all slots; None = the narrowest that
        suffices for those that do not wait.
        """
        assert 0 < steps <= self._steps, f"{steps} steps asked, compiled for {self._steps}"
        wanted = np.full(self.layout.slots, -1, np.int32)
        by_shard: list[list[int]] = [[] for _ in range(self.layout.shards)]
        for slot, quota in quotas.items():
            assert 0 <= quota <= steps, f"a quota of {quota} in {steps} steps"
            wanted[slot] = quota
            if quota:
                by_shard[self.layout.shard_of(slot)].append(slot)
        top = not self._with_top.isdisjoint(quotas)
        if rows is None:
            need = max(map(len, by_shard))
            rows = min((one for one in self._narrow_decodes() if one >= need), default=0)
        if rows == 0:
            return _Pending(self._dispatch(decode_name(), wanted), _Asked(top=top), self)
        named = np.full(rows * self.layout.shards, self.layout.slots, np.int32)
        for shard, slots in enumerate(by_shard):
            named[shard * rows : shard * rows + len(slots)] = slots
        out = self._dispatch(decode_name(rows), wanted, named)
        used = np.flatnonzero(named < self.layout.slots)
        return _Pending(out, _Asked(used, named[used], top), self)

    def constrain(self, masks: Mapping[int, NDArray[np.int32]]) -> None:
        """Send masks, a few slots at a time; see `Runner.constrain`."""
        slots = [*masks]
        rows = self.programs[MASK].spec.arguments[1].shape[0]
        for first in range(0, len(slots), rows):
            some = slots[first : first + rows]
            at = np.full(rows, self.layout.slots, np.int32)
            words = np.zeros((rows, self._tables.masks.shape[1]), np.int32)
            at[: len(some)] = some
            words[: len(some)] = [masks[slot] for slot in some]
            with self.watching():
                sent = self._call(MASK, self._tables.masks, at, words)
                self._tables = dataclasses.replace(self._tables, masks=sent)

    def update(self, params: Mapping[str, jax.Array]) -> None:
        """Take other weights from the next dispatch on; see `Runner.update`."""
        kept = jax.tree.map(lambda one: shaped(one.shape, one.dtype, one.sharding), self._params)
        found = [str(one) for one in differences(self.update, (kept,), (dict(params),))]
        found += [
            f"params.{name} is not on the mesh"
            for name, one in params.items()
            if not all(isinstance(x, jax.Array) and x.committed for x in jax.tree.leaves(one))
        ]
        if found:
            raise RequestError(
                f"the new weights do not fit ({len(found)} differ): {found[0]}; nearest: arrays of "
                "the same names, types, shapes and places as those being served",
                param="params",
            )
        self._params = dict(params)

    def _dispatch(self, name: str, *given: Any) -> Any:
        """Run a program over the state; what it returns beside the new one."""
        with self.watching():
            # The old state is gone once the program runs, so the new one is kept whatever is heard.
            self._state, out = self._call(name, self._params, self._state, self._tables, *given)
        return out

    def _call(self, name: str, *arguments: Any) -> Any:
        program, guard = self.programs[name], self.guard
        return program.call(*arguments) if guard is None else guard.call(program, *arguments)

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
