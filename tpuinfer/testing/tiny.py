"""Tiny models with random weights, and their programs compiled in a second or two.

`TINY` has heads that a model axis of 4 or 8 divides; `ODD` has nothing that divides: 3 heads on 1
KV head, 97 tokens, and an embed that 4 divides and 8 does not. What is built is kept for the
process, so tests share the compiled programs; a `runner` of its own state costs next to nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tpuinfer.config import EngineConfig
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.plan import Plan, abstract_device, plan_of, repeated
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, weights
from tpuinfer.models.decoder import Decoder
from tpuinfer.ops.steering import Tables
from tpuinfer.platform import PlatformSettings, platform_settings
from tpuinfer.programs.closed_set import program_specs
from tpuinfer.programs.compile import Program, ProgramSpec, compile_programs
from tpuinfer.programs.state import DecodeState, zeros
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray
from tpuinfer.sharding.layout import Layout
from tpuinfer.sharding.presets import load_rules

TINY = ModelConfig(
    family="llama",
    vocab=128,
    embed=32,
    mlp=64,
    layers=2,
    heads=16,
    kv_heads=8,
    head_dim=8,
    context=1024,
    eos_ids=(0,),
)

ODD = ModelConfig(
    family="llama",
    vocab=97,
    embed=36,
    mlp=60,
    layers=2,
    heads=3,
    kv_heads=1,
    head_dim=8,
    context=1024,
    tie_embeddings=True,
    eos_ids=(0,),
)

BUCKETS = (8, 16)
BLOCK = 8


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights by the blueprint's names and shapes, the same for the same seed.

    Norms lie around 1; the others are scaled so that the layers outweigh the last token: greedy
    answers wander through the vocabulary, and any foreign or missing token changes them.
    """
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        normal = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            return 1 + 0.1 * normal
        gain = 2 if name.startswith("layers.") else 1
        return normal * np.float32(gain / np.sqrt(shape[-1]))

    return {name: draw(name, w.shape) for name, w in weights(registry.build(config)).items()}


@dataclass(frozen=True)
class Tiny:
    """A tiny model on a mesh: what `engine.build` makes of a checkpoint, without the checkpoint.

    Attributes:
      plan: sizes and places.
      weights: float32, on the host. params: the same on the mesh, in the model's dtype.
      state, tables: shapes and shardings of the decode state, and of what steers its slots.
    """

    plan: Plan
    blueprint: Decoder
    state: DecodeState
    tables: Tables
    weights: Mapping[str, NDArray[np.float32]]
    params: Mapping[str, jax.Array]

    @property
    def config(self) -> ModelConfig:
        return self.plan.config

    @property
    def layout(self) -> Layout:
        return self.plan.layout

    @functools.cached_property
    def specs(self) -> dict[str, ProgramSpec]:
        """The programs before they are compiled, by name."""
        specs = program_specs(
            self.blueprint,
            self.plan.layout,
            self.state,
            self.tables,
            settings=self.plan.settings,
            dtype=self.plan.dtype,
            buckets=self.plan.buckets,
            schemes=self.plan.schemes,
        )
        return {spec.name: spec for spec in specs}

    @functools.cached_property
    def programs(self) -> dict[str, Program]:
        """The closed set, compiled when first asked for."""
        return compile_programs(list(self.specs.values()))

    @functools.cached_property
    def _no_tables(self) -> Tables:
        """Tables that steer nothing; never donated, so all runners may begin with the same."""
        return zeros(self.tables)

    def runner(
        self, state: DecodeState | None = None, programs: Mapping[str, Program] | None = None
    ) -> DeviceRunner:
        """A runner with a state of its own: `state` (which it will donate), or an idle one."""
        return DeviceRunner(
            self.params,
            zeros(self.state) if state is None else state,
            self._no_tables,
            self.programs if programs is None else programs,
            layout=self.plan.slots,
            buckets=self.plan.buckets,
            steps=self.plan.settings.steps,
            rolls=self.plan.rolls,
        )


@dataclass(frozen=True)
class Options:
    """What is not as usual about a tiny model.

    Attributes:
      slots: as `--slots` takes it.
      steps: the most decode steps in one dispatch. buckets: two at most; fewer compile sooner.
      rows, narrow: prompts per prefill, and rows of narrow decodes, per data shard.
      sinks: roll with that many sinks; None = stop at the end of the context.
      block: ring columns read at a time. On a CPU sums over fewer than 16 depend on `rows`.
      quant, ring, attention, rules: as `--weights`, `--ring`, `--attention`, `--rules` take them.
    """

    slots: str = "4x48"
    dtype: str = "float32"
    steps: int = 4
    buckets: tuple[int, ...] = BUCKETS
    rows: tuple[int, ...] = (1,)
    narrow: tuple[int, ...] = ()
    sinks: int | None = None
    block: int = BLOCK
    quant: str = "none"
    ring: str = "auto"
    attention: str = "auto"
    rules: str = "1d"

    def engine(self) -> EngineConfig:
        others: dict[str, Any] = {"ring": self.ring, "attention": self.attention}
        if self.sinks is not None:
            others |= {"context_policy": "roll", "sinks": self.sinks}
        return EngineConfig.parse(self.slots, **others)

    def settings(self) -> PlatformSettings:
        """The CPU's, but small chunks and blocks."""
        return dataclasses.replace(
            platform_settings("cpu"),
            steps=self.steps,
            chunk=self.buckets[-1],
            smallest_bucket=self.buckets[0],
            prefill_rows=self.rows,
            prefill_tokens=max(self.rows) * self.buckets[-1],
            narrow_rows=self.narrow,
            block=self.block,
        )


def tiny(config: ModelConfig = TINY, mesh: str = "1", **options: Any) -> Tiny:
    """A tiny model laid out on a mesh.

    Args:
      mesh: as `--mesh` takes it. options: as `Options` says.
    """
    return _build(config, mesh, Options(**options))


@functools.cache
def _build(config: ModelConfig, mesh: str, options: Options) -> Tiny:
    plan = plan_of(
        config,
        mesh=mesh,
        rules=load_rules(options.rules),
        dtype=options.dtype,
        weights=options.quant,
        engine=options.engine(),
        settings=options.settings(),
    )
    buckets = options.buckets
    assert plan.buckets == buckets, f"buckets {plan.buckets}, not {buckets}"
    host = random_weights(config)
    repeats = repeated(plan)
    blueprint = registry.build(plan.config)
    shapes = abstract_params(blueprint, plan.layout, options.dtype, plan.schemes)
    state, tables = abstract_device(plan)
    return Tiny(
        plan=plan,
        blueprint=blueprint,
        state=state,
        tables=tables,
        weights=host,
        params={
            name: _put(np.repeat(host[name], repeats.get(name, 1), axis=0), one)
            for name, one in shapes.items()
        },
    )


def _put(host: NDArray[np.float32], abstract: Any) -> Any:
    """A weight where a plan wants it, quantised if it says so."""
    if not isinstance(abstract, QArray):
        return jax.device_put(host.astype(abstract.dtype), abstract.sharding)
    made = fit.quantise(jnp.asarray(host), fit.scheme_of(abstract), host.ndim - abstract.outs)
    made = made.packed() if abstract.is_packed else made
    return jax.tree.map(lambda part, one: jax.device_put(part, one.sharding), made, abstract)
