"""`--mesh auto`: the best mesh by the planner's bounds, of a slice or of the devices here.

That is the one that decodes fastest; of those that do, the one that is fastest with prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpuinfer.checkpoint import catalogue
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, Settings
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.model_config import AnyConfig, EncoderConfig, ModelConfig
from tpuinfer.models import registry, sizes
from tpuinfer.planning import running
from tpuinfer.planning import topology as slices
from tpuinfer.planning.compare import compare
from tpuinfer.planning.question import Question, find_model
from tpuinfer.planning.topology import Topology
from tpuinfer.quant.schemes import AUTO, PUBLISHED, Scheme
from tpuinfer.sharding.mesh import DATA, MODEL, MeshShape, open_devices
from tpuinfer.sharding.presets import load_rules
from tpuinfer.sharding.rules import ShardingRules

_ALIKE = 0.02
"""Meshes whose bounds of decode differ by less are told apart by that of prefill."""

_NO_MESH = MeshShape(((DATA, 1), (MODEL, 1)))
"""In questions whose mesh is yet to be chosen."""


@dataclass(frozen=True)
class Choice:
    """A mesh as `--mesh` takes it, and why it was chosen."""

    mesh: str
    why: str


def choose(question: Question) -> Choice:
    """The best mesh of a question's slice; its own counts nothing.

    Raises:
      OutOfMemoryError: none fits, or none can be.
    """
    rows = compare(question, [question.topology])
    fit = [row.answer for row in rows if row.answer is not None and row.fits]
    if not fit:
        why = "the arrays fit on none of them"
        if all(row.answer is None for row in rows):
            why = rows[0].why
        raise OutOfMemoryError(
            f"mesh is auto, and {question.name} runs on no mesh of {question.topology}: {why}; "
            "python -m tpuinfer.plan tells what would fit"
        )
    enough = (1 - _ALIKE) * max(one.tokens_per_second for one in fit)
    fast = [one for one in fit if one.tokens_per_second >= enough]
    found = max(fast, key=lambda one: one.prefill_tokens_per_second)
    return Choice(
        slices.written(found.question.mesh),
        f"of {len(rows)} meshes of {question.topology} {len(fit)} fit; it decodes "
        f"{found.tokens_per_second:,.0f} tokens/s at the bound ({found.decode.bound.limit}), "
        f"{'the most' if len(fast) == 1 else f'as {len(fast)} of them do, and reads prompts best'}",
    )


def best_mesh(
    model: str,
    topology: str | None = None,
    *,
    weights: str = AUTO,
    rules: str | Path | ShardingRules | None = None,
    dtype: str = "auto",
    slots: int | str = 8,
    context: int | str | None = None,
    **engine: Any,
) -> str:
    """The mesh that the planner would choose, as `LLM(mesh=...)` and `--mesh` take it.

    >>> best_mesh("llama-3.1-8b", "v5e:2x4", slots="64x2048")
    '8'

    Args:
      model: as `LLM` takes it, or a name of a known model's sizes.
      topology: a slice, such as v5e:2x4; None = the devices here.
      engine: as `EngineConfig` takes them; slots are what meshes are compared by.

    Raises:
      OutOfMemoryError: none fits. TpuinferError: the model or the slice cannot be found.
    """
    asked, table = EngineConfig.parse(slots, context, **engine), load_rules(rules)
    if topology is None:
        name = str(model)
        config, stored = _described(name) or _fetched(Settings(name, dtype=dtype, weights=weights))
        return _here(_Asked(name, config, asked, weights, table, dtype, stored)).mesh
    name, found = find_model(str(model))
    on = slices.parse(topology)
    return choose(Question(name, found, on, _NO_MESH, asked, weights, table, dtype)).mesh


def for_settings(
    chosen: Settings,
    engine: EngineConfig,
    *,
    random_weights: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Choice:
    """The best mesh of the devices here, for what the front doors were asked to run.

    Args:
      random_weights: sizes of a known model instead of a checkpoint.

    Raises:
      TpuinferError: the model cannot be found, or fits on no mesh.
    """
    if random_weights:
        config, stored = registry.read_config(sizes.find(random_weights)), None
    else:
        config, stored = _fetched(chosen, cache_dir, progress)
    rules = load_rules(chosen.rules)
    name = random_weights or chosen.model
    return _here(_Asked(name, config, engine, chosen.weights, rules, chosen.dtype, stored))


@dataclass(frozen=True)
class _Asked:
    """A question without its slice, maybe of an encoder; fields as in `Question`."""

    name: str
    config: AnyConfig
    engine: EngineConfig
    weights: str
    rules: ShardingRules | None
    dtype: str
    stored: Mapping[str, Scheme] | None

    def on(self, topology: Topology, config: ModelConfig) -> Question:
        weights = AUTO if self.weights == PUBLISHED else self.weights
        return Question(
            self.name,
            config,
            topology,
            _NO_MESH,
            self.engine,
            weights,
            self.rules,
            self.dtype,
            stored=self.stored,
        )


def _here(asked: _Asked) -> Choice:
    devices = open_devices()
    kind, count = devices[0].device_kind, len(devices)
    topology = running.slice_of(kind, count)
    if topology is None and devices[0].platform == "cpu":
        return Choice("1", "a CPU is one device; --mesh 8 simulates eight")
    if isinstance(asked.config, EncoderConfig):
        return Choice(f"{count}x1", "an encoder's texts go to all devices")
    if topology is not None:
        return choose(asked.on(topology, asked.config))
    heads = asked.config.kv_heads
    model = next(one for one in range(count, 0, -1) if count % one == 0 and heads % one == 0)
    mesh = MeshShape(((DATA, count // model), (MODEL, model)))
    return Choice(
        slices.written(mesh), f"no table knows {count} of {kind}; this cuts {heads} KV heads evenly"
    )


def _described(model: str) -> tuple[AnyConfig, None] | None:
    """A model that is known by its sizes alone."""
    if model in catalogue.entries() or model.lower() not in sizes.sizes():
        return None
    return registry.read_config(sizes.find(model)), None


def _fetched(
    chosen: Settings, cache_dir: Path | None = None, progress: Progress = silent
) -> tuple[AnyConfig, Mapping[str, Scheme] | None]:
    """A checkpoint's config and the schemes that it has already; fetched if need be."""
    path = checkpoint_load.resolve(
        chosen.model,
        dtype=chosen.dtype,
        published=chosen.weights == PUBLISHED,
        cache_dir=cache_dir,
        progress=progress,
    )
    config = registry.read_config(checkpoint_load.read_config(path))
    if isinstance(config, EncoderConfig) or chosen.weights not in (AUTO, PUBLISHED):
        return config, None
    return config, checkpoint_load.stored_schemes(path)
