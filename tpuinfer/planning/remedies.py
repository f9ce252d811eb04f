"""What would make a plan work, the smallest change first."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import TpuinferError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.planning import hardware, memory
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, reckoned
from tpuinfer.planning.question import Question, lay_out, room
from tpuinfer.planning.topology import Topology
from tpuinfer.quant.schemes import AUTO, NONE

_Kinds = Counter[tuple[tuple[int, ...], tuple[str | None, ...]]]

_CODED = "--weights int8 --ring int8"
_LEAST_BYTES = {AUTO: 2, NONE: 2, "int8": 1}
"""Of a weight, at least; of other schemes half a byte."""


class _Change(NamedTuple):
    """What to try: of one kind only until one works.

    Attributes:
      flags: to give instead. why: they help. question: what they make of the question.
    """

    kind: str
    flags: str
    why: str
    question: Question


@dataclass(frozen=True)
class Remedy:
    """A change after which everything fits.

    Attributes:
      flags: to give instead. why: in words. answer: what they lead to, reckoned.
    """

    flags: str
    why: str
    answer: Answer


def remedies(question: Question) -> list[Remedy]:
    """Changes that work, by how little they ask of the user; one of each kind.

    Another mesh of the slice; rings, weights, or both, in fewer bits; fewer slots; a shorter
    context; a larger slice; a slice of another chip. Where no one change helps on the slice, both
    in fewer bits with fewer slots; and where no other slice does, those with both in fewer bits.
    """
    kinds = _kinds(question)
    single = _working(_changes(question), kinds)
    coded = _coded(question)
    if coded is None or any(kind.startswith("slice") for kind in single):
        larger: dict[str, Remedy] = {}
    else:
        larger = _working(_larger(coded, _CODED), kinds)
    smaller: dict[str, Remedy] = {}
    if coded is not None and all(kind.startswith("slice") for kind in single):
        smaller = _working(_smaller(coded, f"{_CODED} "), kinds)
    return [*smaller.values(), *single.values(), *larger.values()]


def _working(changes: Iterator[_Change], kinds: _Kinds) -> dict[str, Remedy]:
    """The first of each kind after which everything fits, with room for programs."""
    found: dict[str, Remedy] = {}
    for change in changes:
        if change.kind in found:
            continue
        question = change.question
        try:
            if not _may_fit(question, kinds):
                continue
            plan = lay_out(question)
            hbm = memory.estimate(plan, question.topology)
            if hbm.has_room:
                found[change.kind] = Remedy(change.flags, change.why, reckoned(question, plan, hbm))
        except TpuinferError:
            continue
    return found


def _may_fit(question: Question, kinds: _Kinds) -> bool:
    """Whether weights alone fit; and, where memory is to decide on slots, whether the least do."""
    engine, most = question.engine, memory.capacity(question.topology)
    if engine.fit != "nothing":
        least = (SlotClass(question.mesh.size, 2),)
        question = _with(question, engine=dataclasses.replace(engine, classes=least, fit="nothing"))
    plan = lay_out(question)
    if _least(question, plan, kinds) > most:
        return False
    return engine.fit == "nothing" or memory.estimate(plan, question.topology).has_room


def _kinds(question: Question) -> _Kinds:
    """How many weights there are of each shape and axes."""
    every = weights(registry.build(question.config)).values()
    return Counter((one.shape, one.axes) for one in every)


def _least(question: Question, plan: Plan, kinds: _Kinds) -> float:
    """Bytes that weights take at least on one device: most changes fall by these, fast."""
    each = _LEAST_BYTES.get(question.weights, 0.5)
    return each * sum(
        count
        * math.prod(shape)
        / math.prod(plan.layout.stored_shards(axis) for axis in axes if axis)
        for (shape, axes), count in kinds.items()
    )


def _changes(question: Question) -> Iterator[_Change]:
    for mesh in slices.meshes(question.topology, question.mesh_axes):
        if mesh != question.mesh:
            flags = f"--mesh {slices.written(mesh)}"
            yield _Change("mesh", flags, "the same slice, laid out so", _with(question, mesh=mesh))
    coded = dataclasses.replace(question.engine, ring="int8")
    plain_ring, plain = question.engine.ring == "auto", question.weights in (AUTO, NONE)
    if plain_ring:
        made = _with(question, engine=coded)
        yield _Change("ring", "--ring int8", "rings take half", made)
    if plain:
        made = _with(question, weights="int8")
        yield _Change("weights", "--weights int8", "weights take half", made)
    if (both := _coded(question)) is not None:
        yield _Change("both", _CODED, "both take half", both)
    yield from _smaller(question)
    yield from _larger(question)


def _coded(question: Question) -> Question | None:
    """With weights and rings in half the bits, where neither was chosen."""
    if question.engine.ring != "auto" or question.weights not in (AUTO, NONE):
        return None
    engine = dataclasses.replace(question.engine, ring="int8")
    return _with(question, weights="int8", engine=engine)


def _smaller(question: Question, beside: str = "") -> Iterator[_Change]:
    """Fewer slots, or shorter ones: the most that fits.

    Args:
      beside: flags that the question stands for already.
    """
    engine = question.engine
    if engine.fit != "nothing":
        return
    try:
        plan = lay_out(question)
    except TpuinferError:
        return
    space, asked = room(question, plan), plan.slots.slots
    if len(engine.classes) > 1:
        yield from _fewer_of_each(question, plan.layout.shards("batch"), beside)
        return
    if 0 < (slots := min(asked, space.most_slots(plan.context))) < asked:
        classes = (SlotClass(slots, plan.context),)
        yield _slots("slots", classes, "fewer requests at once", question, beside)
    if 0 < (context := space.longest_context(asked)) < plan.context:
        yield _slots("context", (SlotClass(asked, context),), "shorter requests", question, beside)


def _fewer_of_each(question: Question, shards: int, beside: str) -> Iterator[_Change]:
    """A half, a quarter and so on of each class, as far as each data shard keeps one."""
    for part in (2, 4, 8, 16):
        classes = tuple(
            SlotClass(max(1, one.slots // part // shards) * shards, one.context)
            for one in question.engine.classes
        )
        yield _slots("slots", classes, "fewer requests at once", question, beside)


def _slots(
    kind: str, classes: tuple[SlotClass, ...], why: str, question: Question, beside: str
) -> _Change:
    engine = dataclasses.replace(question.engine, classes=classes)
    return _Change(kind, f"{beside}--slots {written(engine)}", why, _with(question, engine=engine))


def _larger(question: Question, beside: str = "") -> Iterator[_Change]:
    """A larger slice, and the smallest one of each other chip that comes after it in the table."""
    topology = question.topology
    for chip in _chips(topology):
        same = chip == topology.chip
        for one in slices.slices(chip):
            if (one.chips <= topology.chips) if same else (one.chips > topology.chips):
                continue
            why = f"{one.chips} chips instead of {topology.chips}"
            if not same:
                why = f"{_memory(one)} instead of {_memory(topology)}"
            for mesh in slices.meshes(one, question.mesh_axes)[:4]:
                flags = f"--topology {one} --mesh {slices.written(mesh)} {beside}".strip()
                made = _with(question, topology=one, mesh=mesh)
                yield _Change("slice" if same else "slice of another", flags, why, made)


def _memory(topology: Topology) -> str:
    """Such as "8 x 17 GB"."""
    return f"{topology.chips} x {topology.chip.hbm_usable_bytes / 1e9:.0f} GB"


def _chips(topology: Topology) -> list[hardware.Chip]:
    """The same chip, then those with more memory each."""
    own = topology.chip
    others = [
        chip
        for chip in hardware.CHIPS.values()
        if bool(chip.torus) == topology.is_tpu and chip.hbm_bytes > own.hbm_bytes and chip != own
    ]
    return [own, *sorted(others, key=lambda chip: (chip.hbm_bytes, -chip.flops.bf16))]


def written(engine: EngineConfig) -> str:
    """Classes of slots as `--slots` takes them."""
    return ",".join(
        f"{one.slots}x{one.context}" if one.context else str(one.slots) for one in engine.classes
    )


def _with(question: Question, **changed: Any) -> Question:
    return dataclasses.replace(question, **changed)
