"""From the name of a model and the shape of a mesh to an engine that is ready for requests."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.pooling import read_pooling
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, check_dtype
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.encoder import EncoderPlan, encoder_plan_of
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.fit import plan_to_fit
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.engine.plan import Plan, abstract_device, abstract_weights, repeated, specs_of
from tpuinfer.engine.warmup import WarmUp
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import EncoderConfig
from tpuinfer.models import registry
from tpuinfer.programs.compile import compile_programs, use_compilation_cache
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.state import zeros
from tpuinfer.quant.schemes import AUTO, NONE, PUBLISHED, Scheme
from tpuinfer.sharding.mesh import parse_mesh
from tpuinfer.sharding.presets import load_rules
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.sharding.simulate import prepare_cpu_devices

if TYPE_CHECKING:
    from tpuinfer.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Params = Mapping[str, Any]
"""Arrays and QArrays on the mesh, by name."""


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
    table = load_rules(rules)
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
    plan = plan_to_fit(
        config,
        mesh=mesh,
        rules=table,
        dtype=asked,
        weights=chosen,
        engine=engine or EngineConfig(),
    )
    return dataclasses.replace(plan, path=path)


def load_params(plan: Plan) -> Params:
    """The weights of a plan's checkpoint, on the mesh.

    Raises:
      CheckpointError: they are missing or damaged. MeshError: the devices have not enough memory.
    """
    assert plan.path is not None, "a plan without a checkpoint: `start` takes the weights"
    try:
        return checkpoint_load.load_params(plan.path, abstract_weights(plan), repeated(plan))
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


def start(
    plan: Plan, params: Params, *, cache_dir: Path | None = None, progress: Progress = silent
) -> DeviceRunner:
    """Compile every program for weights that are on the mesh, and run each once.

    Raises:
      MeshError: the device has not enough memory.
    """
    use_compilation_cache((cache_dir or checkpoint_load.default_cache_dir()) / "compiled")
    state, tables = abstract_device(plan)
    specs = specs_of(plan)
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


def _smaller(plan: Plan) -> str:
    """What would need less memory than this plan."""
    return (
        f"fewer slots (now {plan.slots.slots}), a shorter context (now {plan.context}) or a larger "
        "mesh need less"
    )
