"""The logits that cells are compared by, and how far two of them lie apart.

The same tokens go through every cell: 48 by chunks of a prefill, then 16 one by one in the form of
a decode, over rings of their own. What is kept is [tokens, V] float32, log-probabilities of the
next token in nats. Slots play no part: two cells that differ in them alone have the same bits,
unless their contexts give them other rotary factors (longrope).
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.config import EngineConfig, SlotClass
from tpuinfer.engine.build import Params
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.engine.plan import Plan, abstract_device, sized
from tpuinfer.errors import ConfigError
from tpuinfer.experiment.cell import digest
from tpuinfer.experiment.record import Record
from tpuinfer.models import registry
from tpuinfer.offline.disk import sync_folder
from tpuinfer.platform import for_attention, platform_settings
from tpuinfer.programs.compile import compile_programs
from tpuinfer.programs.logits import DECODE_NAME, NAME, Mode, log_probs_spec
from tpuinfer.programs.state import zeros
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.mesh import platform_of

PREFILLED, DECODED = 48, 16

_WIDTH = 16
"""Tokens of a chunk."""

_CONTEXT = 128
"""Of the rings, where the model has so much."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """How far two cells' log-probabilities lie apart.

    Attributes:
      max, mean: of absolute differences over tokens and vocabulary, nats.
      top1: share of the tokens whose most likely next one is the same.
      equal: every bit is.
    """

    max: float
    mean: float
    top1: float
    equal: bool

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read(plan: Plan, params: Params) -> Logits:
    """What a plan's model makes of the tokens: [tokens, V] float32.

    Raises:
      MeshError: the devices have not enough memory. ArithmeticError: what comes out is no number.
    """
    probe = small(plan)
    shards = probe.layout.shards("batch")
    state, _ = abstract_device(probe)
    specs = [_spec(probe, state.rings, "prefill"), _spec(probe, state.rings, "decode")]
    try:
        programs = {name: one.call for name, one in compile_programs(specs).items()}
        rings: Any = zeros(state.rings)
        found = []
        for start, ids in _pieces(plan.config.vocab):
            program = programs[NAME if len(ids) == _WIDTH else DECODE_NAME]
            tokens = np.tile(np.array(ids, np.int32), (shards, 1))
            one = np.ones(shards, np.int32)
            rings, rows = program(params, rings, tokens, start * one, len(ids) * one)
            found.append(np.asarray(rows)[0])
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), "a larger mesh needs less") from error
    logits = np.concatenate(found)
    if np.isnan(logits).any():
        raise ArithmeticError("the logits are no numbers")
    return logits


def layout_digest(plan: Plan, cell: Mapping[str, Any]) -> str:
    """Digits of where everything lies, and of what else the logits depend on.

    Args:
      cell: as a record has it.
    """
    layout = plan.layout
    same = {name: cell[name] for name in ("model", "topology", "weights", "attention")}
    tables = [layout, *([layout.apart] if layout.apart else [])]
    return digest(
        {
            **same,
            "ring": plan.rings[0][0].dtype,
            "dtype": plan.dtype,
            "config": dataclasses.asdict(plan.config),
            "mesh": [(name, size) for name, size in layout.mesh.shape.items() if size > 1],
            "repeats": layout.repeats,
            "tables": [_decided(one) for one in tables],
        }
    )


def difference(one: Record | Logits, other: Record | Logits) -> Difference:
    """How far the logits of two cells lie apart: records of a sweep that ran, or their arrays.

    Raises:
      ConfigError: a cell has none, as nothing ran; or they are of another vocabulary.
    """
    a, b = (of if isinstance(of, np.ndarray) else load(of) for of in (one, other))
    if a.shape != b.shape:
        raise ConfigError(
            f"logits are of shapes {a.shape} and {b.shape}: only cells of one vocabulary can be "
            "compared"
        )
    with np.errstate(invalid="ignore"):  # -inf beside -inf
        apart = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))
    finite = apart[np.isfinite(apart)]
    return Difference(
        float(finite.max(initial=0.0)),
        float(finite.mean()) if finite.size else 0.0,
        float((a.argmax(-1) == b.argmax(-1)).mean()),
        a.tobytes() == b.tobytes(),
    )


def load(record: Record) -> Logits:
    """The logits of a record.

    Raises:
      ConfigError: nothing ran, or the file is gone or torn.
    """
    if record.logits is None or record.folder is None:
        what = f"{record.cell['rules']} on {record.mesh}"
        raise ConfigError(f"{what} has no logits: only cells that ran on devices have")
    return load_file(record.folder / record.logits["file"])


def load_file(path: Path) -> Logits:
    """Logits that `keep` wrote.

    Raises:
      ConfigError: the file is gone or torn.
    """
    try:
        found: Logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: the logits cannot be read ({error})") from error
    return found


def keep(path: Path, logits: Logits) -> None:
    """Write logits so that a kill or a power loss leaves all of them or none.

    Raises:
      ConfigError: the disk is full or fails.
    """
    new = path.with_suffix(".new")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(path.parent.parent)
        with open(new, "wb") as file:
            np.save(file, logits, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def tokens_of(vocab: int) -> list[int]:
    """The same ids for every model of this vocabulary."""
    return np.random.default_rng(vocab).integers(vocab, size=PREFILLED + DECODED).tolist()


def _pieces(vocab: int) -> list[tuple[int, list[int]]]:
    """(start, tokens) of each call."""
    ids = tokens_of(vocab)
    chunks = [(at, ids[at : at + _WIDTH]) for at in range(0, PREFILLED, _WIDTH)]
    return chunks + [(at, ids[at : at + 1]) for at in range(PREFILLED, len(ids))]


def small(plan: Plan) -> Plan:
    """The plan with one short slot a data shard, whatever slots it had: what `read` runs.

    Its rotary factors stay those of the plan's own context.
    """
    mesh, layout = plan.layout.mesh, plan.layout
    context = min(plan.config.context, _CONTEXT)
    engine = EngineConfig(
        (SlotClass(layout.shards("batch"), context),),
        ring=plan.engine.ring,
        attention=plan.engine.attention,
    )
    settings = platform_settings(platform_of(mesh), mesh.size)
    return sized(
        plan.published,
        layout,
        engine,
        settings=for_attention(settings, plan.engine.attention),
        dtype=plan.dtype,
        schemes=plan.schemes,
    )


def _spec(probe: Plan, rings: Any, mode: Mode) -> Any:
    return log_probs_spec(
        registry.build(probe.config),
        probe.layout,
        rings,
        settings=probe.settings,
        dtype=probe.dtype,
        width=_WIDTH if mode == "prefill" else 1,
        schemes=probe.schemes,
        mode=mode,
    )


def _decided(layout: Layout) -> dict[str, Any]:
    decisions = {
        axis: (one.mesh_axis, one.shards, one.gathered) for axis, one in layout.decisions.items()
    }
    return {"reduce": layout.rules.reduce, "decisions": decisions}
