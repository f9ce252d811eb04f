"""A model that reads windows and is told the right token each time."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from tpuinfer.accuracy.text import Windows
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.engine.build import Params
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.engine.plan import Plan, abstract_device
from tpuinfer.models import registry
from tpuinfer.programs.compile import compile_programs, use_compilation_cache
from tpuinfer.programs.logits import NAME, log_probs_spec
from tpuinfer.programs.state import zeros

_LESS = "a shorter window, a narrower chunk or a larger mesh need less"


class Scored(NamedTuple):
    """Neighbouring scored tokens of one window.

    Attributes:
      start: the first one's number among all that are scored.
      log_probs: [N, V] float32, what the model thought would come. targets: [N] int32, what did.
    """

    start: int
    log_probs: NDArray[np.float32]
    targets: NDArray[np.int32]


class Teacher:
    """A plan's weights and the program that scores a chunk.

    The plan has at least one slot on each data shard, as long as the longest window.

    Args:
      width: tokens of a chunk, which is how the rings are filled: a chunk attends to itself before
        it is kept.
    """

    def __init__(
        self,
        plan: Plan,
        params: Params,
        width: int,
        *,
        cache_dir: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        """Compile the program.

        Raises:
          MeshError: the devices have not enough memory.
        """
        use_compilation_cache((cache_dir or checkpoint_load.default_cache_dir()) / "compiled")
        state, _ = abstract_device(plan)
        spec = log_probs_spec(
            registry.build(plan.config),
            plan.layout,
            state.rings,
            settings=plan.settings,
            dtype=plan.dtype,
            width=width,
            schemes=plan.schemes,
        )
        self._plan, self._params, self._width = plan, params, width
        try:
            self._rings = zeros(state.rings)
            self._program = compile_programs([spec], progress)[NAME].call
        except jax.errors.JaxRuntimeError as error:
            raise as_mesh_error(error, plan.placements(), _LESS) from error

    def read(self, windows: Windows) -> Iterator[Scored]:
        """Every scored token; windows side by side, one on each data shard."""
        shards = self._plan.layout.shards("batch")
        starts = windows.starts
        for first in range(0, len(windows.ids), shards):
            some = windows.ids[first : first + shards]
            for at in range(0, max(map(len, some)) - 1, self._width):
                found = self._chunk(some, at)
                for row, ids in enumerate(some):
                    targets = np.array(ids[at + 1 : at + 1 + self._width], np.int32)
                    if targets.size:
                        yield Scored(starts[first + row] + at, found[row, : targets.size], targets)

    def _chunk(self, windows: tuple[tuple[int, ...], ...], at: int) -> NDArray[np.float32]:
        """[R, width, V] after tokens `at` and on of each window; rings are written from 0 on."""
        shards = self._plan.layout.shards("batch")
        tokens = np.zeros((shards, self._width), np.int32)
        length = np.zeros(shards, np.int32)
        for row, ids in enumerate(windows):
            part = ids[at : at + self._width]
            tokens[row, : len(part)], length[row] = part, len(part)
        start = np.where(length > 0, at, 0).astype(np.int32)
        self._rings, found = self._program(self._params, self._rings, tokens, start, length)
        return np.asarray(found)
