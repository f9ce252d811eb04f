"""Bytes that a compiled program moves through HBM, counted in its optimised HLO.

    free         parameters, constants, tuples, bitcasts, the second half of async pairs
    while        its body and condition, times the trips
    conditional  one branch: the cheapest, or the dearest
    other        what `planning.access` says

What is in VMEM costs nothing; what is brought there is read once, when it is brought. The
compiler's own `bytes accessed` cannot be used: it takes loop bodies for run once, and counts what
is in VMEM.

Each value is followed from the entry parameter that it came from, through copies, slices, loops and
fusions that only rewrite it (widen, scale, turn), so that bytes can be asked for by parameter.

Known limits: of a kernel of one's own what it tells is believed, its data-dependent skips are not
seen; a dot that reads an operand more than once from HBM counts once; collectives in windows
(collective matmuls) count too often. One that is spread over fusions, to go on while they compute,
counts where it begins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tpuinfer.planning import access
from tpuinfer.planning.hlo import Computation, Instruction, Module

Source = str | None | tuple["Source", ...]
"""Which entry parameter a value came from, by its name; of a tuple, of each part."""

_FREE = ("constant", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier")
_FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")


@dataclass(frozen=True)
class Assumed:
    """What the text does not say.

    Attributes:
      trips: how often a loop runs whose end depends on data, by the end of its op_name; the longest
        end that fits counts. Others run once.
      branch: which branch of a conditional counts, by its bytes.
    """

    trips: Mapping[str, int] = field(default_factory=dict)
    branch: Literal["least", "most"] = "least"

    def trips_of(self, loop: Instruction) -> int:
        """How often a loop runs."""
        if loop.trips is not None:
            return loop.trips
        fits = [end for end in self.trips if loop.op_name.endswith(end)]
        return self.trips[max(fits, key=len)] if fits else 1


@dataclass(frozen=True)
class Move:
    """What one instruction moves, each time it runs.

    Attributes:
      reads: (source, bytes) of its operands in HBM. written: bytes into HBM.
      sources: of its operands, wherever they are. result: of what it makes; None = it is new.
      times: how often it runs.
      collective: its kind, or "". payload: bytes of its larger side, wherever that is.
    """

    instruction: Instruction
    reads: tuple[tuple[str | None, int], ...]
    written: int
    sources: frozenset[str]
    result: str | None
    times: int
    collective: str
    payload: int

    @property
    def nbytes(self) -> int:
        """All that it moves, in all its runs."""
        return self.times * (self.written + sum(size for _, size in self.reads))

    @property
    def cycles(self) -> int:
        """The compiler's estimate, of all its runs."""
        return self.times * self.instruction.cycles


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind: how many run, and the bytes of their larger side."""

    count: int
    nbytes: int


@dataclass(frozen=True)
class Traffic:
    """What a program moves on one device, instruction by instruction."""

    moves: tuple[Move, ...]

    @property
    def nbytes(self) -> int:
        """Bytes read from HBM and written to it."""
        return sum(move.nbytes for move in self.moves)

    @property
    def cycles(self) -> int:
        """The compiler's estimates, added up: to rank variants of one kind, and no more."""
        return sum(move.cycles for move in self.moves)

    def of(self, names: Iterable[str]) -> int:
        """Bytes spent on entry parameters: on reading them, and on rewritten forms of them."""
        chosen, total = frozenset(names), 0
        for move in self.moves:
            size = sum(size for source, size in move.reads if source in chosen)
            size += move.written if move.result in chosen else 0
            total += move.times * size
        return total

    def cycles_of(self, names: Iterable[str]) -> int:
        """Estimated cycles of all that takes one of these entry parameters."""
        chosen = frozenset(names)
        return sum(move.cycles for move in self.moves if move.sources & chosen)

    def copies(self, names: Iterable[str], at_least: int) -> list[Move]:
        """What writes a form of one of these parameters to HBM anew, of at least so many bytes.

        Writing rows in place is none.
        """
        chosen = frozenset(names)
        return [move for move in self.moves if move.result in chosen and move.written >= at_least]

    def collectives(self) -> dict[str, Collective]:
        """How many of each kind, and their bytes."""
        found: dict[str, Collective] = {}
        for move in self.moves:
            if move.collective:
                seen = found.get(move.collective, Collective(0, 0))
                found[move.collective] = Collective(
                    seen.count + move.times, seen.nbytes + move.times * move.payload
                )
        return found


def measure(module: Module, assumed: Assumed = Assumed()) -> Traffic:
    """Count what a program moves on one device, from the start of its entry to the end."""
    walk = _Walk(module, assumed)
    given: list[Source] = [one.op_name or one.name for one in module.entry.parameters]
    walk.run(module.entry, given, 1)
    return Traffic(tuple(walk.moves))


def sizes(module: Module) -> dict[str, int]:
    """Bytes of each entry parameter, by the name that tracing gave it."""
    found: dict[str, int] = {}
    for one in module.entry.parameters:
        name = one.op_name or one.name
        found[name] = found.get(name, 0) + sum(array.stored for array in one.shape)
    return found


@dataclass
class _Walk:
    module: Module
    assumed: Assumed
    moves: list[Move] = field(default_factory=list)

    def run(self, body: Computation, given: list[Source], times: int) -> Source:
        """Count a computation; returns where its result came from."""
        known: dict[str, Source] = {}
        for one in body.instructions:
            if one.opcode == "parameter":
                known[one.name] = given[one.index]
            else:
                operands = [known[name] for name in one.operands]
                known[one.name] = self._step(body, one, operands, times)
        return known[body.root.name]

    def _step(
        self, body: Computation, one: Instruction, operands: list[Source], times: int
    ) -> Source:
        bodies = self.module.computations
        first = operands[0] if operands else None
        if one.opcode == "tuple":
            return tuple(operands)
        if one.opcode == "get-tuple-element":
            return first[one.index] if isinstance(first, tuple) else first
        if one.opcode == "while":
            trips = times * self.assumed.trips_of(one)
            self.run(bodies[one.called["condition"]], operands, trips)
            return self.run(bodies[one.called["body"]], operands, trips)
        if one.opcode == "conditional":
            return self._branch(one, operands[1:], times)
        if one.opcode in ("call", "async-start"):
            role = "to_apply" if one.opcode == "call" else "calls"
            return self.run(bodies[one.called[role]], operands, times)
        if one.opcode in _FREE or one.opcode.endswith("-done") or one.target in _FREE_TARGETS:
            return first
        move = self._move(body, one, [_single(source) for source in operands], times)
        self.moves.append(move)
        if one.call is not None and one.call.aliases:
            kept = one.call.aliases
            given = [operands[kept[at]] if at in kept else None for at in range(len(one.made))]
            return tuple(given) if len(given) > 1 else given[0]
        return move.result

    def _branch(self, one: Instruction, operands: list[Source], times: int) -> Source:
        tried: list[tuple[int, list[Move], Source]] = []
        for at, given in enumerate(operands):
            inner = _Walk(self.module, self.assumed)
            body = self.module.computations[one.called[f"branch{at}"]]
            result = inner.run(body, [given], times)
            tried.append((sum(move.nbytes for move in inner.moves), inner.moves, result))
        choose = min if self.assumed.branch == "least" else max
        _, moves, result = choose(tried, key=lambda branch: branch[0])
        self.moves += moves
        return result

    def _move(
        self, body: Computation, one: Instruction, operands: list[str | None], times: int
    ) -> Move:
        reads: dict[str, tuple[str | None, int]] = {}
        kind, payload, carried = self._exchange(body, one)
        for at, name in enumerate(one.operands):  # an operand that is named twice is read once
            size = 0 if at in carried else access.read(self.module, body, one, at)
            reads[name] = (operands[at], max(size, reads.get(name, (None, 0))[1]))
        same = {operands[at] for at in access.rewritten(self.module, body, one)} - {None}
        return Move(
            one,
            tuple(read for read in reads.values() if read[1]),
            access.written(self.module, body, one),
            frozenset(source for source in operands if source is not None),
            same.pop() if len(same) == 1 else None,
            times,
            kind,
            payload,
        )

    def _exchange(self, body: Computation, one: Instruction) -> tuple[str, int, frozenset[int]]:
        """Kind and payload of a collective that begins; operands of one that has begun before."""
        found = access.exchange(self.module, body, one)
        if found is None:
            return "", 0, frozenset()
        inner, collective = found
        sources = [inner.by_name[name] for name in dict.fromkeys(collective.operands)]
        if access.goes_on(body, one):
            sent = [source.index for source in sources if source.opcode == "parameter"]
            return "", 0, frozenset([*one.aliased.values(), *sent])
        given = sum(array.stored for source in sources for array in source.shape)
        made = sum(array.stored for array in collective.made)
        return collective.opcode.removesuffix("-start"), max(given, made), frozenset()


def _single(source: Source) -> str | None:
    return None if isinstance(source, tuple) else source
