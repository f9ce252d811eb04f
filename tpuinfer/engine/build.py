"""From the name of a model and the shape of a mesh to an engine that is ready for requests."""

from dataclasses import dataclass
from pathlib import Path

import jax

from tpuinfer.cache.spec import RING_AXES, RingSpec, ring_length
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, ModelConfig, check_dtype
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import MAX_STOP_IDS
from tpuinfer.errors import CheckpointError, ConfigError, MeshError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, weights
from tpuinfer.platform import PlatformSettings, for_context, platform_settings
from tpuinfer.programs.buckets import default_buckets
from tpuinfer.programs.compile import compile_programs, program_specs, use_compilation_cache
from tpuinfer.programs.state import abstract_state, zeros
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.report import Placement, place
from tpuinfer.sharding.rules import Layout, ShardingRules, load_rules, resolve
from tpuinfer.sharding.simulate import prepare_cpu_devices
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Plan:
    """Everything decided before a weight is read: what runs, how large, and where it lies.

    Attributes:
      path: the checkpoint directory.
      dtype: of weights and activations. context: tokens a request may have, prompt and answer.
      rings: one spec per layer.
    """

    path: Path
    config: ModelConfig
    layout: Layout
    settings: PlatformSettings
    dtype: str
    context: int
    rings: tuple[RingSpec, ...]

    def placements(self) -> list[Placement]:
        """Where each weight and ring lies, how large its part is, and why."""
        blueprint = registry.build(self.config)
        named = {name: (w.shape, w.axes) for name, w in weights(blueprint).items()}
        rings = {
            f"layers.{layer}.ring.{part}": (spec.shape, RING_AXES)
            for part in ("keys", "values")
            for layer, spec in enumerate(self.rings)
        }
        rows = place(self.layout, named, jax.numpy.dtype(self.dtype).itemsize)
        return rows + place(self.layout, rings, jax.numpy.dtype(self.rings[0].dtype).itemsize)


@dataclass(frozen=True)
class Loaded:
    """An engine with its programs compiled and run once, and the words it speaks."""

    plan: Plan
    engine: Engine
    runner: DeviceRunner
    tokenizer: Tokenizer


def make_plan(
    model: str | Path,
    *,
    mesh: str | int = 1,
    rules: str | Path | ShardingRules | None = None,
    dtype: str = "auto",
    engine: EngineConfig | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Plan:
    """Find the model (fetching and converting it once if need be) and lay it out on the mesh.

    Raises:
      CheckpointError, ConfigError, MeshError: what cannot work, before any weight is read.
    """
    engine = engine or EngineConfig()
    asked = check_dtype(dtype)
    shape = parse_mesh(mesh)
    prepare_cpu_devices(shape.size)
    table = rules if isinstance(rules, ShardingRules) else load_rules(rules) if rules else None
    path = checkpoint_load.resolve(model, dtype=asked, cache_dir=cache_dir, progress=progress)
    config = registry.read_config(checkpoint_load.read_config(path))
    devices = build_mesh(shape)
    layout = resolve(table or ShardingRules(), devices, registry.axis_sizes(config, engine.slots))
    settings = platform_settings(devices.devices.flat[0].platform, devices.size)
    context = _context(config, engine, settings)
    settings = for_context(settings, context)
    width = settings.dtype if asked == "auto" else asked
    ring = RingSpec(
        slots=engine.slots,
        kv_heads=config.kv_heads,
        length=ring_length(context, settings.block),
        head_dim=config.head_dim,
        dtype=settings.ring_dtype or width,
    )
    return Plan(path, config, layout, settings, width, context, (ring,) * config.layers)


def load(
    plan: Plan,
    *,
    max_waiting: int = 4096,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Read the weights onto the mesh, compile every program, and run each once.

    Compiled programs are kept in `cache_dir` and read from there the next time.

    Raises:
      CheckpointError: the weights are missing or damaged.
      TokenizerError: the vocabulary is.
      MeshError: the device has not enough memory.
    """
    use_compilation_cache((cache_dir or checkpoint_load.default_cache_dir()) / "compiled")
    tokenizer = load_tokenizer(plan.path)
    if tokenizer.vocab_size > plan.config.vocab:
        raise CheckpointError(
            f"{plan.path}: the tokenizer knows {tokenizer.vocab_size} ids, but the embedding has "
            f"{plan.config.vocab} rows: they are not of one model"
        )
    blueprint = registry.build(plan.config)
    shapes = abstract_params(blueprint, plan.layout, plan.dtype)
    state = abstract_state(plan.rings, plan.layout, MAX_STOP_IDS)
    buckets = default_buckets(plan.settings.chunk, plan.settings.smallest_bucket)
    specs = program_specs(
        blueprint,
        plan.layout,
        state,
        settings=plan.settings,
        dtype=plan.dtype,
        buckets=buckets,
    )
    try:
        params = checkpoint_load.load_params(plan.path, shapes)
        runner = DeviceRunner(
            params,
            zeros(state),
            {},
            shards=plan.layout.shards("batch"),
            capacity=plan.context,
            buckets=buckets,
            steps=plan.settings.steps,
        )
        compile_programs(specs, progress, ready=runner.add)
    except jax.errors.JaxRuntimeError as error:
        raise _as_mesh_error(error, plan) from error
    engine = Engine(runner, tokenizer, steps=plan.settings.steps, max_waiting=max_waiting)
    return Loaded(plan, engine, runner, tokenizer)


def _context(config: ModelConfig, engine: EngineConfig, settings: PlatformSettings) -> int:
    if engine.context is None:
        return min(config.context, settings.default_context)
    if engine.context > config.context:
        raise ConfigError(
            f"context is {engine.context}, but the model was made for at most {config.context}; "
            f"nearest: {config.context}"
        )
    return engine.context


def _as_mesh_error(error: Exception, plan: Plan) -> MeshError:
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
        return MeshError(f"the device failed: {text[:300]}")
    need = sum(row.bytes_per_device for row in plan.placements())
    slots = plan.rings[0].slots
    return MeshError(
        f"out of device memory: weights and rings take {need / 1e9:.2f} GB per device; fewer slots "
        f"(now {slots}), a shorter context (now {plan.context}) or a larger mesh need less"
    )
