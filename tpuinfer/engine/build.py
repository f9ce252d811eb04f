"""From the name of a model and the shape of a mesh to an engine that is ready for requests."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from tpuinfer.cache.spec import RingSpec
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.pooling import read_pooling
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, check_dtype
from tpuinfer.engine import kept
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.encoder import EncoderPlan, encoder_plan_of
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_IDS
from tpuinfer.engine.warmup import WarmUp
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import EncoderConfig, ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, pieces, weights
from tpuinfer.ops.steering import Tables
from tpuinfer.platform import PlatformSettings, for_context, platform_settings
from tpuinfer.programs.buckets import default_buckets
from tpuinfer.programs.closed_set import program_specs
from tpuinfer.programs.compile import compile_programs, use_compilation_cache
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.programs.state import DecodeState, abstract_state, abstract_tables, zeros
from tpuinfer.quant.schemes import AUTO, NONE, PUBLISHED, Scheme
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.report import Placement, Sized, place
from tpuinfer.sharding.rules import Layout, ShardingRules, load_rules, resolve
from tpuinfer.sharding.simulate import prepare_cpu_devices

if TYPE_CHECKING:
    from tpuinfer.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Params = Mapping[str, Any]
"""Arrays and QArrays on the mesh, by name."""


@dataclass(frozen=True)
class Plan:
    """Everything decided before a weight is read: what runs, how large, and where it lies.

    Attributes:
      path: the checkpoint directory; None when the weights come from elsewhere.
      dtype: of weights and activations.
      slots: how many, how long. rings: for each layer, one spec per class of slots.
      schemes: of the weights that are quantised, by name.
    """

    path: Path | None
    config: ModelConfig
    layout: Layout
    settings: PlatformSettings
    dtype: str
    slots: SlotLayout
    rings: tuple[tuple[RingSpec, ...], ...]
    engine: EngineConfig
    schemes: Mapping[str, Scheme] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Tokens a request may have before the context policy steps in."""
        return self.slots.capacity

    @property
    def rolls(self) -> bool:
        return self.engine.context_policy == "roll"

    @property
    def buckets(self) -> tuple[int, ...]:
        """Widths of prefill; the last is the chunk."""
        chunk = self.settings.chunk
        return default_buckets(chunk, min(chunk, self.settings.smallest_bucket))

    def placements(self) -> list[Placement]:
        """Where each weight and ring lies, how large its part is, and why."""
        blueprint, abstract = registry.build(self.config), abstract_weights(self)
        named = {}
        for name, w in weights(blueprint).items():
            scheme = str(self.schemes.get(name, self.dtype))
            named[name] = Sized(w.shape, w.axes, scheme, pieces(abstract[name], w.axes))
        rings = {
            f"layers.{layer}.{name}.{part}": kept.sized(spec)
            for part in ("keys", "values")
            for layer, classes in enumerate(self.rings)
            for name, spec in zip(self._ring_names(layer), classes, strict=True)
        }
        return place(self.layout, named | rings)

    def _ring_names(self, layer: int) -> list[str]:
        """Of a layer's rings: by the tokens of their class where there are several, and by window.

        Rings of one name are of one shape: they share a row of the report.
        """
        names = []
        for index, spec in enumerate(self.rings[layer]):
            tokens = f"_{self.slots.capacities[index]}" if len(self.rings[layer]) > 1 else ""
            longest = max(classes[index].length for classes in self.rings)
            window = f"_window_{spec.window}" if spec.length < longest else ""
            names.append(f"ring{tokens}{window}")
        return names


@dataclass(frozen=True)
class Loaded:
    """An engine with its programs compiled and run once, and the words it speaks."""

    plan: Plan
    engine: Engine
    runner: DeviceRunner
    tokenizer: "Tokenizer"


def make_plan(
    model: str | Path,
    *,
    mesh: str | int = 1,
    rules: str | Path | ShardingRules | None = None,
    dtype: str = "auto",
    weights: str = AUTO,
    engine: EngineConfig | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Plan:
    """Find the model (fetching and converting it once if need be) and lay it out on the mesh.

    Args:
      weights: how they are kept: auto (as the checkpoint has them, what was published quantised
        dequantised), published, none, or as `quant.schemes` says.

    Raises:
      CheckpointError, ConfigError, MeshError: what cannot work, before any weight is read; an
        encoder is a ConfigError.
    """
    plan = make_any_plan(
        model,
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        weights=weights,
        engine=engine,
        cache_dir=cache_dir,
        progress=progress,
    )
    if isinstance(plan, EncoderPlan):
        raise ConfigError(
            f"{model} is an encoder ({plan.config.family}): it makes vectors of texts, and no "
            f'text; nearest: in Python, LLM("{model}").embed(texts)'
        )
    return plan


def make_any_plan(
    model: str | Path,
    *,
    mesh: str | int = 1,
    rules: str | Path | ShardingRules | None = None,
    dtype: str = "auto",
    weights: str = AUTO,
    engine: EngineConfig | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Plan | EncoderPlan:
    """As `make_plan`, of a model that makes text or of one that makes vectors."""
    asked = check_dtype(dtype)
    prepare_cpu_devices(parse_mesh(mesh).size)
    table = rules if isinstance(rules, ShardingRules) else load_rules(rules) if rules else None
    path = checkpoint_load.resolve(
        model,
        dtype=asked,
        published=weights == PUBLISHED,
        cache_dir=cache_dir,
        progress=progress,
    )
    config = registry.read_config(checkpoint_load.read_config(path))
    if isinstance(config, EncoderConfig):
        if weights not in (AUTO, NONE):
            raise ConfigError(
                f"weights is {weights!r}: an encoder's are not quantised; nearest: auto"
            )
        pooling = read_pooling(path)
        return encoder_plan_of(
            config, pooling, path=path, mesh=mesh, rules=table, dtype=asked, engine=engine
        )
    chosen: str | Mapping[str, Scheme] = weights
    if weights in (AUTO, PUBLISHED):
        chosen = checkpoint_load.stored_schemes(path)
    plan = plan_of(config, mesh=mesh, rules=table, dtype=asked, weights=chosen, engine=engine)
    return dataclasses.replace(plan, path=path)


def plan_of(
    config: ModelConfig,
    *,
    mesh: str | int | Mesh = 1,
    rules: ShardingRules | None = None,
    dtype: str = "auto",
    weights: str | Mapping[str, Scheme] = NONE,
    engine: EngineConfig | None = None,
    settings: PlatformSettings | None = None,
) -> Plan:
    """Lay a model of these sizes out on the mesh; no checkpoint is needed.

    Args:
      mesh: its shape; or a mesh of devices, which may be described ones that are not there.
      weights: how they are kept, as `quant.schemes` says, or the scheme of each that is quantised.
      settings: what suits the platform; None = what is known of it.

    Raises:
      ConfigError, MeshError: what cannot work.
    """
    engine = engine or EngineConfig()
    asked = check_dtype(dtype)
    if not isinstance(mesh, Mesh):
        shape = parse_mesh(mesh)
        prepare_cpu_devices(shape.size)
        mesh = build_mesh(shape)
    layout = resolve(rules or ShardingRules(), mesh, registry.axis_sizes(config, engine.slots))
    settings = settings or platform_settings(mesh.devices.flat[0].platform, mesh.size)
    slots = SlotLayout(
        tuple(one.slots for one in engine.classes),
        _contexts(config, engine, settings),
        layout.shards("batch"),
    )
    rolls = engine.context_policy == "roll"
    if rolls and engine.sinks > slots.capacities[0] // 4:
        raise ConfigError(
            f"sinks is {engine.sinks}, of a context of {slots.capacities[0]}: at most a quarter "
            f"may stay; nearest: {slots.capacities[0] // 4}"
        )
    settings = for_context(settings, slots.capacities[0], slots.capacity, rolls)
    width = settings.dtype if asked == "auto" else asked
    rings = tuple(
        kept.rings_of(config, layer, slots, settings, width, engine)
        for layer in range(config.layers)
    )
    if config.settled(slots.capacity) != config:
        _log.info(
            "context %d is beyond this model's original one: longrope's long factors hold "
            "from the first token on, for short texts too",
            slots.capacity,
        )
    config = config.settled(slots.capacity)
    schemes = kept.schemes_of(config, layout, weights)
    return Plan(None, config, layout, settings, width, slots, rings, engine, schemes)


def abstract_weights(plan: Plan) -> dict[str, Any]:
    """Every parameter as ShapeDtypeStructs, or QArrays of them: what a checkpoint loads into."""
    return abstract_params(registry.build(plan.config), plan.layout, plan.dtype, plan.schemes)


def load_params(plan: Plan) -> Params:
    """The weights of a plan's checkpoint, on the mesh.

    Raises:
      CheckpointError: they are missing or damaged. MeshError: the devices have not enough memory.
    """
    assert plan.path is not None, "a plan without a checkpoint: `start` takes the weights"
    try:
        return checkpoint_load.load_params(plan.path, abstract_weights(plan))
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), _smaller(plan)) from error


def load(
    plan: Plan,
    *,
    chat_template: str | Path | None = None,
    max_waiting: int = 4096,
    max_waiting_tokens: int | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Read the weights onto the mesh, compile every program, and run each once.

    Compiled programs are kept in `cache_dir` and read from there the next time.

    Args:
      chat_template: a file with the chat template to use instead of the model's own.

    Raises:
      CheckpointError: the weights are missing or damaged.
      TokenizerError: the vocabulary or the chat template is.
      MeshError: the device has not enough memory.
    """
    from tpuinfer.tokenizer.load import load_tokenizer

    assert plan.path is not None, "a plan without a checkpoint: `start` takes the weights"
    tokenizer = load_tokenizer(plan.path, chat_template=chat_template, vocab_size=plan.config.vocab)
    runner = start(plan, load_params(plan), cache_dir=cache_dir, progress=progress)
    engine = Engine(
        runner,
        tokenizer,
        steps=plan.settings.steps,
        max_waiting=max_waiting,
        max_waiting_tokens=max_waiting_tokens,
        prefill_wait=plan.engine.prefill_wait_ms / 1000,
    )
    return Loaded(plan, engine, runner, tokenizer)


def abstract_device(plan: Plan) -> tuple[DecodeState, Tables]:
    """What lives on the devices beside the weights, abstract."""
    state = abstract_state(
        plan.rings, plan.layout, vocab=plan.config.vocab, max_stop_ids=MAX_STOP_IDS
    )
    return state, abstract_tables(state, MAX_LOGIT_BIAS)


def start(
    plan: Plan, params: Params, *, cache_dir: Path | None = None, progress: Progress = silent
) -> DeviceRunner:
    """Compile every program for weights that are on the mesh, and run each once.

    Raises:
      MeshError: the device has not enough memory.
    """
    use_compilation_cache((cache_dir or checkpoint_load.default_cache_dir()) / "compiled")
    state, tables = abstract_device(plan)
    specs = program_specs(
        registry.build(plan.config),
        plan.layout,
        state,
        tables,
        settings=plan.settings,
        dtype=plan.dtype,
        buckets=plan.buckets,
        schemes=plan.schemes,
    )
    try:
        runner = DeviceRunner(
            params,
            zeros(state),
            zeros(tables),
            {},
            layout=plan.slots,
            buckets=plan.buckets,
            steps=plan.settings.steps,
            rolls=plan.rolls,
        )
        compile_programs(specs, progress, ready=WarmUp(runner, plan.config.vocab).add)
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), _smaller(plan)) from error
    runner.guard = CompileGuard(plan.engine.strict_compile)
    return runner


def _contexts(
    config: ModelConfig, engine: EngineConfig, settings: PlatformSettings
) -> tuple[int, ...]:
    contexts = []
    for one in engine.classes:
        context = one.context or min(config.context, settings.default_context)
        if context > config.context:
            raise ConfigError(
                f"context is {context}, but the model was made for at most {config.context}; "
                f"nearest: {config.context}"
            )
        contexts.append(context)
    return tuple(contexts)


def _smaller(plan: Plan) -> str:
    """What would need less memory than this plan."""
    return (
        f"fewer slots (now {plan.slots.slots}), a shorter context (now {plan.context}) or a larger "
        "mesh need less"
    )
