"""What would make a plan work, the smallest change first."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.errors import TpuinferError
from tpuinfer.planning import hardware
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.question import Question, lay_out, room
from tpuinfer.planning.topology import Topology
from tpuinfer.quant.schemes import AUTO, NONE


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
    context; a larger slice; a slice of another chip.
    """
    found: dict[str, Remedy] = {}
    for change in _changes(question):
        if change.kind in found:
            continue
        try:
            tried = answer(change.question)
        except TpuinferError:
            continue
        if tried.fits:
            found[change.kind] = Remedy(change.flags, change.why, tried)
    return list(found.values())


def _changes(question: Question) -> Iterator[_Change]:
    for mesh in slices.meshes(question.topology):
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
    if plain and plain_ring:
        made = _with(question, weights="int8", engine=coded)
        yield _Change("both", "--weights int8 --ring int8", "both take half", made)
    yield from _smaller(question)
    yield from _larger(question)


def _smaller(question: Question) -> Iterator[_Change]:
    """Fewer slots, or shorter ones: the most that fits."""
    engine = question.engine
    if len(engine.classes) > 1 or engine.fit != "nothing":
        return
    try:
        plan = lay_out(question)
    except TpuinferError:
        return
    space, asked = room(question, plan), plan.slots.slots
    if 0 < (slots := min(asked, space.most_slots(plan.context))) < asked:
        yield _slots("slots", SlotClass(slots, plan.context), "fewer requests at once", question)
    if 0 < (context := space.longest_context(asked)) < plan.context:
        yield _slots("context", SlotClass(asked, context), "shorter requests", question)


def _slots(kind: str, one: SlotClass, why: str, question: Question) -> _Change:
    engine = dataclasses.replace(question.engine, classes=(one,))
    return _Change(kind, f"--slots {written(engine)}", why, _with(question, engine=engine))


def _larger(question: Question) -> Iterator[_Change]:
    """A larger slice, and the smallest one of each other chip that comes after it in the table."""
    topology = question.topology
    for kind, chip in enumerate(_chips(topology)):
        for one in slices.slices(chip):
            if chip == topology.chip and one.chips <= topology.chips:
                continue
            if chip == topology.chip or one.chips <= topology.chips:
                for mesh in slices.meshes(one)[:4]:
                    flags = f"--topology {one} --mesh {slices.written(mesh)}"
                    why = f"{one.chips} chips instead of {topology.chips}"
                    made = _with(question, topology=one, mesh=mesh)
                    yield _Change(f"slice {kind > 0}", flags, why, made)


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
