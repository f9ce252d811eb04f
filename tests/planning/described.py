"""Programs compiled for TPUs that are described, not there; nothing of it runs.

python -m tests.planning.described [cell ...]      the table of BUILD_NOTES.md, or some rows
"""

import dataclasses
import functools
import sys
import time
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.engine.plan import plan_of, specs_of
from tpuinfer.models import registry, sizes
from tpuinfer.planning import hlo, traffic
from tpuinfer.platform import platform_settings
from tpuinfer.programs.compile import lower
from tpuinfer.sharding.described import described_devices, described_mesh, has_compiler
from tpuinfer.sharding.mesh import MeshShape

LIBTPU = has_compiler()
WHY = "needs libtpu, the TPU compiler (pip install 'tpuinfer[tpu]'); no TPU"

SLOTS, CONTEXT = 64, 2048


@dataclass(frozen=True)
class Cell:
    """What is compiled: Llama-3.1-8B's sizes on v5e:2x4.

    Attributes:
      layers: None = all 32. steps: in one dispatch. width: of a prefill; None = decode.
      data: shards of the slots; the model is cut over the other chips.
    """

    weights: str = "none"
    ring: str = "auto"
    steps: int = 1
    layers: int | None = None
    width: int | None = None
    data: int = 1


@dataclass(frozen=True)
class Found:
    """What the compiler made of a cell, per chip, in bytes.

    Attributes:
      arguments, alias, temporary: as the compiler allocates. seconds: it took.
      sizes: of each parameter, by name. moved: all that the program moves.
      looked_up: rows of the embedding that a decode step reads.
    """

    arguments: int
    alias: int
    temporary: int
    seconds: float
    sizes: dict[str, int]
    moved: traffic.Traffic
    looked_up: int

    @functools.cached_property
    def weights(self) -> list[str]:
        """All but the embedding, of which a step reads only rows."""
        named = (name for name in self.sizes if name.startswith("params["))
        return [name for name in named if "embed_tokens" not in name]

    @functools.cached_property
    def rings(self) -> list[str]:
        return [name for name in self.sizes if name.startswith("state.rings")]

    @property
    def ideal(self) -> int:
        """What a decode step cannot do without: weights and rings once, rows of the embedding."""
        return self.bytes_of(self.weights) + self.bytes_of(self.rings) + self.looked_up

    def bytes_of(self, names: list[str]) -> int:
        return sum(self.sizes[name] for name in names)

    def ratio(self, names: list[str], times: int = 1) -> float:
        """Bytes moved for these parameters over what reading each once a step takes."""
        return self.moved.of(names) / self.bytes_of(names) / times

    def copies(self, names: list[str]) -> list[str]:
        """What makes one of these anew in HBM."""
        least = min(self.sizes[name] for name in names if not name.endswith("scale"))
        return [move.instruction.name for move in self.moved.copies(names, least)]


def described(topology: str = "v5e:2x4", data: int = 1) -> Mesh:
    """A mesh of the chips of a topology that is not here."""
    count = len(described_devices(topology))
    return described_mesh(topology, MeshShape((("data", data), ("model", count // data))))


@functools.cache
def compiled(cell: Cell) -> Found:
    """Lower and compile the real program of a cell, and count what it moves."""
    raw = sizes.find("llama-3.1-8b")
    if cell.layers is not None:
        raw["num_hidden_layers"] = cell.layers
    plan = plan_of(
        registry.read_config(raw),
        mesh=described(data=cell.data),
        weights=cell.weights,
        engine=EngineConfig((SlotClass(SLOTS, CONTEXT),), ring=cell.ring),
        settings=dataclasses.replace(platform_settings("tpu"), steps=cell.steps),
    )
    name = "decode" if cell.width is None else f"prefill_1x{cell.width}"
    start = time.perf_counter()
    made = lower(next(spec for spec in specs_of(plan) if spec.name == name)).compile()
    seconds = time.perf_counter() - start
    module, memory = hlo.parse(made.as_text()), made.memory_analysis()
    # Rings are read block by block, up to the longest slot: here all of them, at the worst.
    trips = {"shard_map/while": CONTEXT // plan.settings.block, "jit(decode)/while": cell.steps}
    sizes_of = traffic.sizes(module)
    table = sum(size for name, size in sizes_of.items() if "embed_tokens" in name)
    own = plan.config.vocab // plan.layout.shards("vocab")
    return Found(
        memory.argument_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        seconds,
        sizes_of,
        traffic.measure(module, traffic.Assumed(trips)),
        table // own * (SLOTS // cell.data),
    )


GRID = {
    "bf16": Cell(),
    "int8": Cell("int8"),
    "w8a8": Cell("w8a8"),
    "fp8": Cell("fp8"),
    "int4:128": Cell("int4:128"),
    "int4:64": Cell("int4:64"),
    "int8 ring": Cell(ring="int8"),
    "fp8 ring": Cell(ring="fp8"),
    "int8, int8 ring": Cell("int8", "int8"),
    "bf16, 8 steps": Cell(steps=8),
    "bf16, 2x4": Cell(data=2),
    "bf16, 2x4, 8 steps": Cell(data=2, steps=8),
    "int8, 8 steps": Cell("int8", steps=8),
    "bf16, prefill": Cell(width=512),
    "int8, prefill": Cell("int8", width=512),
    "w8a8, prefill": Cell("w8a8", width=512),
    "int4:128, prefill": Cell("int4:128", width=512),
    "int4:64, prefill": Cell("int4:64", width=512),
}


def row(name: str, cell: Cell) -> str:
    """A line of the table: GB a chip, for one step."""
    found, steps = compiled(cell), cell.steps
    weights = found.bytes_of(found.weights)
    ideal = found.ideal if cell.width is None else weights
    moved = found.moved.nbytes / steps
    figures = [
        f"{found.arguments / 1e9:.3f}",
        f"{found.temporary / 1e9:.3f}",
        f"{weights / 1e9:.3f}",
        f"{found.ratio(found.weights, steps):.3f}",
        f"{found.ratio(found.rings, steps):.3f}" if cell.width is None else "-",
        f"{ideal / 1e9:.3f}",
        f"{moved / 1e9:.3f}",
        f"{moved / ideal:.3f}",
        f"{found.moved.cycles_of(found.weights) / steps / 1e6:.2f}",
        f"{found.moved.cycles / steps / 1e6:.2f}",
        f"{found.seconds:.0f}",
    ]
    return f"| {name} | " + " | ".join(figures) + " |"


HEAD = """\
| variant | arguments | temporary | weights | moved / weights | moved / rings | ideal | moved \
| ratio | Mcycles at weights | Mcycles | compile s |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main(names: list[str]) -> None:
    """Print the table, row by row."""
    jax.config.update("jax_platforms", "cpu")
    print(HEAD)
    for name in names or GRID:
        print(row(name, GRID[name]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
