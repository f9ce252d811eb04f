"""A case as tpuinfer runs it: its checkpoint converted and loaded, and its text run several ways.

whole       one prefill, on one device
chunks      prefills of CHUNK tokens, the last one padded, on one device
steps       a prefill of a few tokens, then token by token, on one device
mesh        chunks, then token by token, on 2x4 devices

The text lies in the last slot; the others are idle, and the rings hold NaN until they are written.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from family_case import CHUNK, CONTEXT, LENGTH, tokens
from numpy.typing import NDArray

from tpuinfer.cache.held import Rows
from tpuinfer.cache.ring import RingAttention
from tpuinfer.checkpoint import load
from tpuinfer.checkpoint.convert import convert
from tpuinfer.config import EngineConfig
from tpuinfer.engine.plan import Plan, abstract_device, abstract_weights, plan_of, repeated
from tpuinfer.models import registry
from tpuinfer.models.blueprint import bind
from tpuinfer.platform import platform_settings
from tpuinfer.programs.buckets import cut
from tpuinfer.quant.schemes import Scheme

WAYS = ("whole", "chunks", "steps", "mesh")

_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Programs run for milliseconds and compile for seconds: a third of them this way."""

_BLOCK = 8
_SLOTS = 2
_FIRST = 5
_ON_MESH = 36

Logits = NDArray[np.float32]


def run_all(published: Path, work: Path) -> dict[str, Logits]:
    """[LENGTH, V] logits of the text, for each of WAYS.

    Args:
      published: a Hugging Face directory. work: where its conversion goes.
    """
    checkpoint = convert(published, work / "converted", "float32")
    with ThreadPoolExecutor() as pool:  # compiling takes one core each
        alone, on_mesh = pool.submit(_alone, checkpoint), pool.submit(_on_mesh, checkpoint)
        return {**alone.result(), "mesh": on_mesh.result()}


def _alone(checkpoint: Path) -> dict[str, Logits]:
    model = Model(checkpoint, "1")
    return {
        "whole": model.run(LENGTH, CONTEXT),
        "chunks": model.run(LENGTH, CHUNK),
        "steps": model.run(_FIRST, CHUNK),
    }


def _on_mesh(checkpoint: Path) -> Logits:
    return Model(checkpoint, "2x4").run(_ON_MESH, CHUNK)


@dataclass(frozen=True)
class Call:
    """One call of a program: tokens [R, T], and which of its rows are the text's."""

    mode: Any
    tokens: NDArray[np.int32]
    rows: Rows
    own: NDArray[np.intp]


class Model:
    """A checkpoint on a mesh.

    Args:
      weights: the scheme of each weight that is quantised as it is read, by name.
      ring: as `--ring` takes it.
    """

    def __init__(
        self,
        checkpoint: Path,
        mesh: str,
        weights: Mapping[str, Scheme] | None = None,
        ring: str = "auto",
    ) -> None:
        config = registry.read_config(load.read_config(checkpoint))
        settings = dataclasses.replace(
            platform_settings("cpu"), chunk=CHUNK, smallest_bucket=CHUNK, block=_BLOCK
        )
        self.plan: Plan = plan_of(
            config,
            mesh=mesh,
            dtype="float32",
            weights=weights or {},
            engine=EngineConfig.parse(f"{_SLOTS}x{CONTEXT}", ring=ring),
            settings=settings,
        )
        self.blueprint = registry.build(self.plan.config)
        self.params = load.load_params(checkpoint, abstract_weights(self.plan), repeated(self.plan))
        self.tokens = tokens(config.vocab)
        options = dict(settings.compiler_options) | _QUICK
        self._run = jax.jit(self._logits, static_argnums=0, compiler_options=options)

    def run(self, prompt: int, width: int, params: Any = None) -> Logits:
        """[LENGTH, V]: the first `prompt` tokens by prefills of this width, the rest one by one.

        Args:
          params: instead of the checkpoint's.
        """
        params = self.params if params is None else params
        state = abstract_device(self.plan)[0]
        rings = jax.tree.map(_unwritten, state.rings)
        found = []
        for call in self._calls(prompt, width):
            logits, rings = self._run(call.mode, params, rings, call.tokens, call.rows)
            found.append(np.asarray(logits)[call.own])
        return np.concatenate(found)

    def _calls(self, prompt: int, width: int) -> Iterator[Call]:
        shards = self.plan.layout.shards("batch")
        last = _SLOTS // shards - 1
        for chunk in cut(prompt, width, (width,)):
            rows = self._rows(np.full(shards, last), chunk.start, chunk.size)
            own = np.arange(chunk.size) + (shards - 1) * chunk.bucket
            yield Call("prefill", self._text(shards, chunk.bucket, *chunk[:2]), rows, own)
        for position in range(prompt, LENGTH):
            rows = self._rows(np.arange(_SLOTS) % (last + 1), position, 1)
            own = np.array([_SLOTS - 1])
            yield Call("decode", self._text(_SLOTS, 1, position, 1), rows, own)

    def _text(self, rows: int, width: int, start: int, size: int) -> NDArray[np.int32]:
        out = np.zeros((rows, width), np.int32)
        out[-1, :size] = self.tokens[start : start + size]
        return out

    def _rows(self, slots: NDArray[np.intp], start: int, size: int) -> Rows:
        starts, lengths = np.zeros((2, len(slots)), np.int32)
        starts[-1], lengths[-1] = start, size
        return Rows(slots.astype(np.int32), starts, lengths)

    def _logits(self, mode: Any, params: Any, rings: Any, ids: Any, rows: Rows) -> Any:
        layout = self.plan.layout
        model = bind(self.blueprint, params)
        attend = RingAttention(layout, _BLOCK, mode)
        x, rings = model.hidden(ids, rings, rows, attend, layout, jnp.dtype("float32"))
        return model.logits(x.reshape(-1, x.shape[-1]), layout), rings


def _unwritten(array: Any) -> jax.Array:
    """What a former tenant may have left, at its worst: NaN where there is any."""
    junk = np.nan if jnp.issubdtype(array.dtype, jnp.floating) else 127  # of float8's bytes, NaN
    return jax.device_put(np.full(array.shape, junk).astype(array.dtype), array.sharding)
