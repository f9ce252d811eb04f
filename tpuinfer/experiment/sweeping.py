"""All cells, one after the other; what is done is kept, and not done again."""

import contextlib
import dataclasses
import gc
import importlib.metadata
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from tpuinfer.checkpoint.load import default_cache_dir
from tpuinfer.config import EngineConfig
from tpuinfer.engine.identity import identity
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError, MeshError, OutOfMemoryError, TpuinferError
from tpuinfer.experiment import described, probe, running
from tpuinfer.experiment.cell import DEFAULT_RULES, Cell, digest, replaced, unique
from tpuinfer.experiment.journal import Journal
from tpuinfer.experiment.record import Record
from tpuinfer.experiment.source import Source
from tpuinfer.programs.compile import use_compilation_cache
from tpuinfer.sharding.mesh import parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.sharding.simulate import prepare_cpu_devices

Note = Callable[[str], None]

_BEHIND_BITS = ("weights", "stored", "params", "files", "platform", "device_kind")
"""Of `engine.identity`: what the bits of logits depend on beside the layout."""

_log = logging.getLogger(__name__)


def sweep(
    cells: Sequence[Cell],
    out: str | Path = "sweep.jsonl",
    compile: bool = False,
    note: Note | None = None,
    *,
    retry: bool = False,
    reuse: bool = False,
    cache_dir: Path | None = None,
) -> list[Record]:
    """Plan or run every cell that the file has no record of yet.

    A cell that cannot be is a record that says why, and the sweep goes on. After an interruption,
    were it a kill or a power loss, the same call goes on where it ended.

    Args:
      out: the file of records, JSONL; logits lie beside it, in OUT.logits.
      compile: cells on a described slice go through the TPU compiler.
      note: told a line for each cell.
      retry: run cells again whose status is not ok.
      reuse: keep compiled programs in the cache, and take those that are there; how long they take
        to compile is unknown then.
      cache_dir: where models are kept; None = the user's cache.

    Returns:
      A record for each cell, in the order of the cells; its `rules` is the name that the cell has
      now, in the file stands the one it was run under.

    Raises:
      ConfigError: the file cannot be written or is no sweep's; there is no such model; or compile
        is asked for what runs here.
    """
    say = note or (lambda line: None)
    chosen = _chosen(cells, compile)
    if reuse:
        use_compilation_cache((cache_dir or default_cache_dir()) / "compiled")
    with Journal(out) as book:
        work = _Sweep(book, cache_dir, say)
        waiting = [cell for cell in chosen if not _done(book.get(cell.key), retry)]
        if len(waiting) < len(chosen):
            say(f"{len(chosen) - len(waiting)} of {len(chosen)} cells are in {out} already")
        try:
            work.prepare(waiting)
            for number, cell in enumerate(chosen, 1):
                if _done(book.get(cell.key), retry):
                    continue
                record = work.one(cell, [other.key for other in chosen[: number - 1]])
                book.add(record)
                say(f"[{number}/{len(chosen)}] {cell}: {_line(record)}")
        except KeyboardInterrupt:
            done = sum(book.get(cell.key) is not None for cell in chosen)
            say(f"{done} of {len(chosen)} cells are in {out}; the same command goes on")
            raise
        found = [(cell, book.get(cell.key)) for cell in chosen]
    return [_renamed(record, cell) for cell, record in found if record is not None]


def _renamed(record: Record, cell: Cell) -> Record:
    return dataclasses.replace(record, cell={**record.cell, "rules": cell.rules})


def _chosen(cells: Sequence[Cell], compile: bool) -> list[Cell]:
    if not cells:
        raise ConfigError("there are no cells to sweep: give at least one mesh, table and slots")
    here = [cell for cell in cells if cell.topology is None]
    if compile and here:
        raise ConfigError(
            "compile is set, and there is no topology: what runs here is compiled anyway; nearest: "
            "leave out --compile, or --topology v5e:2x4"
        )
    return unique(replaced(cells, compile=True) if compile else cells)


def _done(record: Record | None, retry: bool) -> bool:
    return record is not None and (record.ok or not retry)


class _Sweep:
    """What cells of one sweep share."""

    def __init__(self, book: Journal, cache_dir: Path | None, say: Note) -> None:
        self._book, self._cache_dir, self._say = book, cache_dir, say
        self._why: dict[str, str] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Find what all depend on, before the first cell: models, and enough simulated devices.

        Raises:
          ConfigError, CheckpointError: there is no such model, or records of other devices.
        """
        here = [cell for cell in cells if cell.topology is None]
        if here:
            _prepare_devices(max(cell.mesh.size for cell in here))
        for model in dict.fromkeys(cell.model for cell in here):
            Source(model, self._cache_dir).check()
        for cell in {cell.model: cell for cell in cells if cell.topology is not None}.values():
            described.asked(cell)
        if here:
            self._refuse_other_devices(here[0])

    def one(self, cell: Cell, earlier: Sequence[str]) -> Record:
        """A cell's record, whatever becomes of it.

        Args:
          earlier: keys of the cells before it.
        """
        start = time.perf_counter()
        source = Source(cell.model, self._cache_dir)
        here = cell.topology is None
        place = running.where(cell, source) if here else described.where(cell)
        try:
            fields = (
                self._here(cell, source, earlier) if here else described.described(cell, self._told)
            )
        except Exception as error:  # one cell that fails ends no sweep
            fields = _failed(error)
        gc.collect()  # what lay on the devices
        return Record(
            cell.key,
            cell.as_json(),
            {**place, **_versions()},
            seconds=time.perf_counter() - start,
            folder=self._book.folder,
            **fields,
        )

    def _told(self, program: str) -> None:
        self._say(f"compiled {program}")

    def _here(self, cell: Cell, source: Source, earlier: Sequence[str]) -> dict[str, Any]:
        reference, beside, why = self._reference(cell, source)
        fields, logits = running.run(cell, source)
        file = f"{cell.key}.npy"
        probe.keep(self._book.folder / file, logits)
        told: dict[str, Any] = dict.fromkeys(("max", "mean", "top1", "equal"))
        told |= {"reference": reference, "why": why, "tokens": len(logits), "file": file}
        if beside is not None:
            told |= probe.difference(logits, beside).as_json()
        return {**fields, "logits": told | self._twin(fields["layout"], logits, earlier)}

    def _reference(
        self, cell: Cell, source: Source
    ) -> tuple[str | None, probe.Logits | None, str | None]:
        """The logits on one device under the default rules; made where they are not in a file yet.

        A context may decide on rotary factors (longrope), so the cell's longest is taken.

        Returns:
          (file, logits, None), or (None, None, why there are none).

        Raises:
          ConfigError, MeshError: the cell itself cannot be.
        """
        slots = f"1x{source.plan(cell).context}"
        alone = dataclasses.replace(
            cell,
            mesh=parse_mesh(1),
            rules=DEFAULT_RULES,
            table=ShardingRules(),
            slots=slots,
            engine=EngineConfig.parse(
                slots, ring=cell.engine.ring, attention=cell.engine.attention
            ),
        )
        name = alone.key
        try:
            plan = source.plan(alone)
            name = _reference_name(alone, plan)
            if name in self._why:
                return None, None, self._why[name]
            path = self._book.folder / name
            with contextlib.suppress(ConfigError):  # not there yet, gone or torn
                return name, probe.load_file(path), None
            running.refuse_too_much(probe.small(plan))
            logits = probe.read(plan, source.params(plan))
            probe.keep(path, logits)
        except Exception as error:  # cells are worth running without it
            why = f"no reference on one device: {_failed(error)['why']}"
            if self._why.get(name) != why:
                self._say(why)
            self._why[name] = why
            return None, None, why
        return name, logits, None

    def _twin(self, layout: str, logits: probe.Logits, earlier: Sequence[str]) -> dict[str, Any]:
        """The first cell before this one whose arrays lie alike, and whether its bits are equal.

        One whose logits are gone is passed over.
        """
        for key in earlier:
            other = self._book.get(key)
            if other is None or other.layout != layout or other.logits is None:
                continue
            try:
                same = probe.difference(logits, probe.load(other)).equal
            except ConfigError as error:
                _log.debug("%s", error)
                continue
            if not same:
                self._say(f"{other.cell['rules']} on {other.mesh} lies alike and has other bits")
            return {"same_layout": key, "same_bits": same}
        return {"same_layout": None, "same_bits": None}

    def _refuse_other_devices(self, cell: Cell) -> None:
        """Figures of two kinds of devices do not go into one file."""
        place = running.where(cell, Source(cell.model, self._cache_dir))
        for record in self._book:
            if record.where["how"] == "ran" and (
                record.where["device_kind"] != place["device_kind"]
                or record.where["platform"] != place["platform"]
            ):
                raise ConfigError(
                    f"{self._book.path}: holds cells that ran on {record.where['device_kind']}, "
                    f"and here is {place['device_kind']}; give another --out"
                )


def _reference_name(alone: Cell, plan: Plan) -> str:
    """The file of logits: another layout, config, checkpoint, device or jax has another.

    Contexts that give the same rotary factors share one.
    """
    said = identity(plan, name=alone.model)
    behind = {name: said.get(name) for name in _BEHIND_BITS}
    layout = probe.layout_digest(plan, alone.as_json())
    return f"reference-{digest([layout, behind, jax.__version__])}.npy"


def _prepare_devices(count: int) -> None:
    """As many simulated devices as the largest mesh wants; before that, cells would be refused.

    Raises:
      MeshError: jax has started with fewer.
    """
    prepare_cpu_devices(count)
    found = jax.devices()
    if found[0].platform == "cpu" and len(found) < count:
        raise MeshError(
            f"the largest mesh needs {count} devices, and jax has started with {len(found)} that "
            "the CPU simulates: start the process, or the notebook's kernel, again, and sweep "
            "before anything asks jax for devices"
        )


def _failed(error: Exception) -> dict[str, Any]:
    """Status and why of a cell that came to nothing."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, OutOfMemoryError | MemoryError):
        return {"status": "does not fit", "why": text or "the host has not enough memory"}
    if isinstance(error, TpuinferError):
        return {"status": "refused", "why": text}
    _log.debug("a cell failed", exc_info=error)
    return {"status": "failed", "why": f"{type(error).__name__}: {text}"}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("jax", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _line(record: Record) -> str:
    """What is told of a cell as soon as it is done."""
    if not record.ok:
        return f"{record.status}: {record.why}"
    bound, measured = record.decode["bound_ms"], record.decode["measured_ms"]
    step = f"bound {bound:.3g} ms a step"
    if measured:
        step = f"{measured['median']:.3g} ms a step, {step}"
    return f"{step}; {record.seconds:.0f} s"
