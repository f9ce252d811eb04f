"""The planner against the TPU compiler, cell by cell: what BUILD_NOTES.md has of it.

python -m tests.planning.grid [--decode] [cell ...]       all cells, or some; of decode alone
"""

import sys
import time
from dataclasses import dataclass

import jax

from tests.planning.asked import ask
from tpuinfer.planning import compiled, memory
from tpuinfer.planning.compiled import Measured
from tpuinfer.planning.memory import Hbm
from tpuinfer.planning.question import Question, lay_out
from tpuinfer.programs.closed_set import decode_name

CELLS: dict[str, Question] = {
    "8b": ask(),
    "8b 2x4": ask(mesh="2x4"),
    "8b int8": ask(weights="int8", ring="int8"),
    "8b fp8 ring": ask(ring="fp8"),
    "8b one step": ask(steps=1),
    "8b on 4": ask(topology="v5e:2x2", mesh="4", slots="32x4096"),
    "8b on 1": ask(topology="v5e:1x1", mesh="1", slots="8x2048"),
    "8b full": ask(slots="64x12288"),
    "8b v6e": ask(topology="v6e:2x2", mesh="2x2"),
    "1b": ask("llama-3.2-1b", topology="v5e:2x2", mesh="4"),
    "3b": ask("llama-3.2-3b", topology="v5e:2x2", mesh="2x2", slots="32x4096"),
    "qwen3-8b": ask("qwen3-8b", topology="v5p:2x2x1", mesh="4", slots="64x8192"),
    "gemma-3-27b": ask("gemma-3-27b", topology="v6e:2x4", slots="32x8192"),
    "gpt-oss-20b": ask("gpt-oss-20b"),
    "qwen3-30b-a3b": ask("qwen3-30b-a3b", topology="v5e:4x4", mesh="4x4"),
    "mixtral": ask("mixtral-8x7b", topology="v5p:2x2x1", mesh="4", slots="64x4096"),
    "70b v6e": ask("llama-3.3-70b", topology="v6e:4x4", mesh="2x8"),
    "8b too full": ask(slots="64x14336"),
    "70b v5e": ask("llama-3.3-70b", slots="16x2048"),
    "70b v5e int8": ask("llama-3.3-70b", slots="16x2048", weights="int8", ring="int8"),
}


@dataclass(frozen=True)
class Found:
    """A cell as it was reckoned, and as it was compiled."""

    reckoned: Hbm
    programs: dict[str, Measured]
    ideal: int
    seconds: float

    @property
    def refused(self) -> bool:
        return any(one.needs for one in self.programs.values())

    @property
    def needed(self) -> int:
        """Bytes by the compiler: what lies there, and the most that a program takes beside it."""
        return max(one.argument_bytes + one.temp_bytes for one in self.programs.values())

    @property
    def wanted(self) -> int:
        """The same, as it was reckoned."""
        hbm = self.reckoned
        return hbm.weights + hbm.rings + hbm.state + hbm.temporaries

    @property
    def off(self) -> float:
        """By which share of the compiler's figure the reckoned one is too high."""
        return self.wanted / self.needed - 1


def run(question: Question, names: list[str] | None = None) -> Found:
    """Reckon a cell, and compile it."""
    from tpuinfer.planning import work

    start = time.perf_counter()
    plan = lay_out(question, described=True)
    reckoned = memory.estimate(plan, question.topology)
    programs = compiled.compile_all(plan, names)
    return Found(reckoned, programs, work.decode(plan).bytes, time.perf_counter() - start)


HEAD = (
    "| cell | weights | rings | lying, reckoned | compiled | scratch, reckoned | compiled | off | "
    "fits | compiled | moved / ideal | copies | collectives of decode | code MB | s |\n"
    + "|---" * 15
    + "|"
)


def row(name: str, found: Found) -> str:
    """A line of the table: GB on a device."""
    hbm, decode = found.reckoned, found.programs[decode_name()]
    lying = hbm.weights + hbm.rings + hbm.state
    figures = [
        name,
        f"{hbm.weights / 1e9:.3f}",
        f"{hbm.rings / 1e9:.3f}",
        f"{lying / 1e9:.3f}",
        "-" if found.refused else f"{decode.argument_bytes / 1e9:.3f}",
        f"{hbm.temporaries / 1e9:.3f}",
        " ".join(f"{one.temp_bytes / 1e9:.3f}" for one in found.programs.values()),
        "-" if found.refused else f"{found.off:+.1%}",
        "yes" if hbm.fits else "no",
        "no" if found.refused else "yes",
        "-" if decode.needs else f"{decode.traffic_bytes / found.ideal:.3f}",
        " ".join(str(one.ring_copies) for one in found.programs.values()),
        " ".join(f"{kind} {one.count}" for kind, one in decode.collectives.items()),
        " ".join(f"{one.code_bytes / 1e6:.0f}" for one in found.programs.values()),
        f"{found.seconds:.0f}",
    ]
    return "| " + " | ".join(figures) + " |"


def main(words: list[str]) -> None:
    """Print the table, row by row."""
    jax.config.update("jax_platforms", "cpu")
    names = [decode_name()] if "--decode" in words else None
    print(HEAD)
    for cell in [word for word in words if word != "--decode"] or CELLS:
        print(row(cell, run(CELLS[cell], names)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
