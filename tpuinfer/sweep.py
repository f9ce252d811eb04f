"""`python -m tpuinfer.sweep`: meshes, tables of rules and slots, every one with every other.

On a described slice (--topology, or a config's) cells are planned, with --compile by the TPU
compiler; without one they run on the devices here, which a CPU simulates.
"""

import logging
import sys
from pathlib import Path

import jax
from absl import flags

from tpuinfer import flags as shared
from tpuinfer.errors import ConfigError
from tpuinfer.experiment import as_table, cell, plots, sweeping
from tpuinfer.sharding.mesh import parse_mesh

flags.adopt_module_key_flags(shared)

_MESHES = flags.DEFINE_string(
    "meshes",
    "1",
    "Meshes with commas, such as 1x16,2x8,4x4; those with named axes with semicolons, such as "
    "'data=2,expert=4;1x8'; of a topology also all; default: with --config its mesh.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "A slice, such as v5e:4x4, or several with commas: plan, run nothing; default: the config's; "
    "without one cells run here.",
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "With --topology: ask the TPU compiler, which needs no TPU."
)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Decode steps in one dispatch; default: by the platform.", lower_bound=1
)
_OUT = flags.DEFINE_string(
    "out", "sweep.jsonl", "File of records; what it holds already is not done again."
)
_PLOTS = flags.DEFINE_string("plots", None, "Draw NAME.png, or NAME.svg where that is written.")
_RETRY = flags.DEFINE_bool("retry", False, "Run cells again that did not fit, or failed.")
_REUSE = flags.DEFINE_bool(
    "reuse", False, "Take programs that were compiled before; compile seconds are unknown then."
)

_READ = frozenset(flag.name for flag in (*shared.OF_A_PLAN, shared.CACHE_DIR))


def main() -> None:
    """Plan or run the grid, and print what came of it."""
    if shared.MESH.present:
        raise ConfigError(
            f"--mesh={shared.MESH.value} is one mesh; nearest: --meshes {shared.MESH.value}"
        )
    shared.refuse_unread(_READ, "a sweep")
    chosen = shared.settings()
    logging.getLogger("tpuinfer.sharding.mesh").setLevel(logging.WARNING)  # each cell has a mesh
    picture = _picture(_PLOTS.value)
    named = _TOPOLOGY.value or chosen.topology
    from_config = shared.CONFIG.value is not None and not _MESHES.present
    if named:
        jax.config.update("jax_platforms", "cpu")  # nothing runs, and no TPU is to be taken
    cells = cell.grid(
        chosen.model,
        _meshes(str(chosen.mesh) if from_config else _MESHES.value),
        (chosen.rules or cell.DEFAULT_RULES).split(","),
        _split(str(chosen.slots), ";"),
        named,
        context=chosen.context,
        context_policy=chosen.context_policy,
        sinks=chosen.sinks,
        ring=chosen.ring,
        attention=chosen.attention,
        weights=chosen.weights,
        dtype=chosen.dtype,
        steps=_STEPS.value,
    )
    records = sweeping.sweep(
        cells,
        _OUT.value,
        _COMPILE.value,
        lambda line: print(line, file=sys.stderr, flush=True),
        retry=_RETRY.value,
        reuse=_REUSE.value,
        cache_dir=shared.cache_dir(),
    )
    print(as_table.table(records), flush=True)
    if picture is not None:
        plots.plot(records, picture)
        print(f"drawn: {picture}")


def _meshes(text: str) -> list[str]:
    """Meshes with commas between them; one with named axes has commas of its own."""
    found: list[str] = []
    for part in _split(text, ";"):
        found += [part] if "=" in part else _split(part, ",")
    for one in found:
        if one != "all":
            parse_mesh(one)
    return found


def _split(text: str, mark: str) -> list[str]:
    found = [part.strip() for part in text.split(mark) if part.strip()]
    if not found:
        raise ConfigError(f"{text!r} names nothing; write one, or several with {mark!r} between")
    return found


def _picture(name: str | None) -> Path | None:
    """The file of --plots, whose suffix is PNG's if it has none of those that are drawn."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix not in plots.SUFFIXES:
        path = path.with_name(f"{path.name}.png")
    plots.check(path)
    return path


if __name__ == "__main__":
    shared.run(main)
