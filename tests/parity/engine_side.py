"""Our side of the comparison: rows of logits from the same blocks that the programs run."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tpuinfer.cache.held import Ring, Rows
from tpuinfer.cache.ring import RingAttention
from tpuinfer.cache.spec import RingSpec
from tpuinfer.checkpoint.load import load_params
from tpuinfer.engine.plan import Plan
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, bind

CHUNK = 128
"""Not the engine's chunk: that the cut does not matter (much) is part of what is compared."""


class Scorer:
    """Teacher-forced logits at chosen positions, chunk by chunk through one slot's ring."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._blueprint = registry.build(plan.config)
        shapes = abstract_params(self._blueprint, plan.layout, plan.dtype)
        self._params = load_params(plan.path, shapes)
        self._chunk = jax.jit(self._run)

    def _run(self, params, rings, tokens, start, length):
        model = bind(self._blueprint, params)
        layout, dtype = self._plan.layout, jnp.dtype(self._plan.dtype)
        attend = RingAttention(layout, self._plan.settings.block, "prefill")
        rows = Rows(jnp.zeros(1, jnp.int32), start, length)
        x, rings = model.hidden(tokens, rings, rows, attend, layout, dtype)
        return rings, x

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """[len(positions), V]: the logits after ids[: position + 1], for each position."""
        rings = tuple((_empty(spec),) for (spec,) in self._plan.rings)
        hidden = []
        for start in range(0, len(ids), CHUNK):
            part = np.zeros((1, CHUNK), np.int32)
            real = ids[start : start + CHUNK]
            part[0, : len(real)] = real
            at, length = np.array([start], np.int32), np.array([len(real)], np.int32)
            rings, x = self._chunk(self._params, rings, part, at, length)
            hidden.append(np.asarray(x)[0])
        rows = jnp.asarray(np.concatenate(hidden)[list(positions)])
        model = bind(self._blueprint, self._params)
        return np.asarray(model.logits(rows, self._plan.layout))


def _empty(spec: RingSpec) -> Ring:
    """A ring for one slot."""
    zeros = jnp.zeros((1, *spec.shape[1:]), spec.dtype)
    return Ring(zeros, zeros, spec.window, spec.sinks)
