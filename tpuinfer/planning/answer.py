"""The answer to a question: whether it fits, what moves, how fast it can be at best."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tpuinfer.engine.plan import Plan
from tpuinfer.planning import compiled, memory, roofline, travel, work
from tpuinfer.planning.compiled import Measured, Note
from tpuinfer.planning.memory import Hbm
from tpuinfer.planning.question import Question, lay_out
from tpuinfer.planning.roofline import Bound
from tpuinfer.planning.work import Work
from tpuinfer.programs.closed_set import decode_name
from tpuinfer.sharding.moves import Moved


@dataclass(frozen=True)
class Program:
    """A program: what it must do, how long that takes at least, and what the compiler made of it.

    Attributes:
      measured: None = not compiled.
    """

    name: str
    work: Work
    bound: Bound
    measured: Measured | None = None

    @property
    def ratio(self) -> float | None:
        """Traffic over the ideal."""
        moved = self.measured.traffic_bytes if self.measured else 0
        return moved / self.work.bytes if moved else None


@dataclass(frozen=True)
class Answer:
    """What is known of a question.

    Attributes:
      hbm: reckoned; of what was compiled the compiler's own temporaries.
      programs: decode first, then prefills.
    """

    question: Question
    plan: Plan
    hbm: Hbm
    programs: Mapping[str, Program] = field(default_factory=dict)

    @property
    def decode(self) -> Program:
        return self.programs[decode_name()]

    @property
    def chunk(self) -> Program:
        """The prefill of one full chunk for each data shard."""
        return next(one for name, one in self.programs.items() if name != decode_name())

    @property
    def is_compiled(self) -> bool:
        return self.decode.measured is not None

    @property
    def refused(self) -> int:
        """What a program takes in all that the compiler refused for its size; 0 = none."""
        return max(one.measured.needs if one.measured else 0 for one in self.programs.values())

    @property
    def fits(self) -> bool:
        return self.hbm.fits and not self.refused

    @property
    def replicated(self) -> list[tuple[str, str]]:
        """Axes that the rules would cut and the mesh does not divide; and why, in words."""
        decisions = self.plan.layout.decisions
        return [(axis, one.why) for axis, one in decisions.items() if "divide" in one.why]

    @functools.cached_property
    def resharding(self) -> list[Moved]:
        """What weights travel in each prefill call, where prefill has rules of its own."""
        return travel.resharding(self.plan)

    @property
    def tokens_per_second(self) -> float:
        """All slots decoding at the bound, rings full."""
        return self.plan.slots.slots / self.decode.bound.seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        shards = self.plan.layout.shards("batch")
        return shards * self.plan.settings.chunk / self.chunk.bound.seconds


def answer(
    question: Question, *, compile: bool = False, workers: int = 2, note: Note | None = None
) -> Answer:
    """Lay out and reckon; and ask the compiler too, if so wished.

    Raises:
      MeshError, ConfigError: what cannot work, by name.
    """
    plan = lay_out(question, described=compile)
    hbm = memory.estimate(plan, question.topology)
    if not compile:
        return reckoned(question, plan, hbm)
    measured = compiled.compile_all(plan, workers=workers, note=note)
    return reckoned(question, plan, _as_compiled(plan, hbm, list(measured.values())), measured)


def reckoned(
    question: Question, plan: Plan, hbm: Hbm, measured: Mapping[str, Measured] | None = None
) -> Answer:
    """The answer for a plan that is laid out."""
    of, made = work.table(plan), measured or {}
    programs = {
        name: _program(question, plan, name, of, made.get(name)) for name in compiled.shown(plan)
    }
    return Answer(question, plan, hbm, programs)


def _program(
    question: Question, plan: Plan, name: str, of: work.Table, measured: Measured | None
) -> Program:
    if name == decode_name():
        needed = work.decode(plan, of)
    else:
        rows, width = name.removeprefix("prefill_").split("x")
        needed = work.prefill(plan, int(rows), int(width), of)
    return Program(name, needed, roofline.bound(needed, question.topology), measured)


def _as_compiled(plan: Plan, hbm: Hbm, programs: Sequence[Measured]) -> Hbm:
    """With the compiler's temporaries, and its own size of what lies there from call to call."""
    done = [one for one in programs if not one.needs]
    if len(done) < len(programs):
        return hbm
    arguments = max(one.argument_bytes for one in done)
    lying = hbm.weights + hbm.rings + hbm.state
    temporaries = max(one.temp_bytes for one in done) + max(0, arguments - lying)
    return dataclasses.replace(hbm, temporaries=temporaries)
