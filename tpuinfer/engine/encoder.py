"""From an encoder's numbers and a mesh to an `Embedder` that is ready for texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, check_dtype
from tpuinfer.engine.embed import Embedder
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import EncoderConfig, Pooling
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, pieces, weights
from tpuinfer.platform import PlatformSettings, platform_settings
from tpuinfer.programs.buckets import default_buckets
from tpuinfer.programs.compile import compile_programs, use_compilation_cache
from tpuinfer.programs.encode import encode_specs
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.sharding.layout import Layout, resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.report import Placement, Sized, place
from tpuinfer.sharding.rules import ShardingRules

if TYPE_CHECKING:
    from tpuinfer.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncoderPlan:
    """Everything decided before a weight is read: what runs, how large, and where it lies.

    Attributes:
      path: the checkpoint directory; None when the weights come from elsewhere.
      dtype: of weights and activations.
      context: tokens a text may have.
      strict_compile: a compile after warm-up is an error.
    """

    path: Path | None
    config: EncoderConfig
    pooling: Pooling
    layout: Layout
    settings: PlatformSettings
    dtype: str
    context: int
    strict_compile: bool = False

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(rows per data shard, width) of each program, narrowest first.

        A text's width follows from its length alone, and a width has one number of rows: so what
        comes of a text does not depend on how many others there are.
        """
        smallest = min(self.settings.encode_smallest, self.context)
        widths = default_buckets(self.context, smallest)
        return tuple((max(1, self.settings.encode_tokens // width), width) for width in widths)

    def placements(self) -> list[Placement]:
        """Where each weight lies, how large its part is, and why."""
        blueprint = registry.build(self.config)
        shapes = abstract_params(blueprint, self.layout, self.dtype)
        named = {
            name: Sized(w.shape, w.axes, self.dtype, pieces(shapes[name], w.axes))
            for name, w in weights(blueprint).items()
        }
        return place(self.layout, named)


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder with its programs compiled and run once, and the words it reads."""

    plan: EncoderPlan
    embedder: Embedder
    tokenizer: "Tokenizer"


def encoder_plan_of(
    config: EncoderConfig,
    pooling: Pooling,
    *,
    path: Path | None = None,
    mesh: str | int = 1,
    rules: ShardingRules | None = None,
    dtype: str = "auto",
    engine: EngineConfig | None = None,
    settings: PlatformSettings | None = None,
) -> EncoderPlan:
    """Lay an encoder out on the mesh.

    Args:
      dtype: auto is float32 everywhere: vectors are compared with those that others computed.
      engine: strict_compile, and a context other than the checkpoint's; an encoder has no slots.
      settings: what suits the platform; None = what is known of it.

    Raises:
      ConfigError, MeshError: what cannot work.
    """
    asked = check_dtype(dtype)
    engine = engine or EngineConfig()
    _refuse_what_decoders_have(engine)
    devices = build_mesh(parse_mesh(mesh))
    sizes = registry.axis_sizes(config, slots=0)  # as many rows as are wanted
    return EncoderPlan(
        path=path,
        config=config,
        pooling=pooling,
        layout=resolve(rules or ShardingRules(), devices, sizes),
        settings=settings
        or platform_settings(devices.devices.flat[0].platform, devices.devices.size),
        dtype="float32" if asked == "auto" else asked,
        context=_context(config, pooling, engine.classes[0].context),
        strict_compile=engine.strict_compile,
    )


def load_encoder(
    plan: EncoderPlan, *, cache_dir: Path | None = None, progress: Progress = silent
) -> LoadedEncoder:
    """Read the weights onto the mesh, compile every program, and run each once.

    Raises:
      CheckpointError: the weights are missing or damaged.
      TokenizerError: the vocabulary is.
      MeshError: the device has not enough memory.
    """
    from tpuinfer.tokenizer.load import load_tokenizer

    assert plan.path is not None, "a plan without a checkpoint: `start_encoder` takes the weights"
    tokenizer = load_tokenizer(plan.path, vocab_size=plan.config.vocab)
    shapes = abstract_params(registry.build(plan.config), plan.layout, plan.dtype)
    try:
        params = checkpoint_load.load_params(plan.path, shapes)
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), "a larger mesh needs less") from error
    embedder = start_encoder(plan, params, tokenizer, cache_dir=cache_dir, progress=progress)
    return LoadedEncoder(plan, embedder, tokenizer)


def start_encoder(
    plan: EncoderPlan,
    params: Mapping[str, jax.Array],
    tokenizer: "Tokenizer",
    *,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Embedder:
    """Compile every program for weights that are on the mesh, and run each once.

    Raises:
      MeshError: the device has not enough memory.
    """
    use_compilation_cache((cache_dir or checkpoint_load.default_cache_dir()) / "compiled")
    specs = encode_specs(
        registry.build(plan.config),
        plan.layout,
        plan.pooling,
        sizes=plan.sizes,
        dtype=plan.dtype,
        settings=plan.settings,
    )
    embedder = Embedder(
        params,
        tokenizer,
        plan.pooling,
        sizes=plan.sizes,
        shards=plan.layout.shards("batch"),
        vocab=plan.config.vocab,
        limit=plan.context,
    )
    try:
        compile_programs(specs, progress, ready=embedder.add)
    except jax.errors.JaxRuntimeError as error:
        raise as_mesh_error(error, plan.placements(), "a larger mesh needs less") from error
    embedder.guard = CompileGuard(plan.strict_compile)
    return embedder


def _context(config: EncoderConfig, pooling: Pooling, asked: int | None) -> int:
    if asked is not None and asked > config.context:
        raise ConfigError(
            f"context is {asked}, but the encoder was made for at most {config.context}; "
            f"nearest: {config.context}"
        )
    return asked or min(pooling.max_tokens or config.context, config.context)


def _refuse_what_decoders_have(engine: EngineConfig) -> None:
    default = EngineConfig()
    given = {
        "slots": (_slots(engine), _slots(default)),
        "context-policy": (engine.context_policy, default.context_policy),
        "sinks": (engine.sinks, default.sinks),
        "prefill-wait-ms": (engine.prefill_wait_ms, default.prefill_wait_ms),
    }
    for name, (value, usual) in given.items():
        if value != usual:
            raise ConfigError(
                f"{name} is {value}: an encoder keeps nothing between texts, so it has none; "
                "leave it out"
            )


def _slots(engine: EngineConfig) -> str:
    """How many slots each class has; an encoder's only class may name a length, the context."""
    if engine.fit in ("slots", "both"):
        return "auto"
    return ",".join(str(one.slots) for one in engine.classes)
