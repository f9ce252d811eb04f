"""What is planned: a model on a slice, and how it is to run there."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from tpuinfer.config import EngineConfig
from tpuinfer.engine.fit import Room, plan_to_fit
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry, sizes
from tpuinfer.planning import topology as slices
from tpuinfer.planning.memory import capacity
from tpuinfer.planning.topology import Topology
from tpuinfer.platform import PlatformSettings, platform_settings
from tpuinfer.quant.schemes import AUTO, NONE, Scheme
from tpuinfer.sharding.described import described_mesh
from tpuinfer.sharding.mesh import DATA, MESH_AXES, MODEL, MeshShape, abstract_mesh
from tpuinfer.sharding.rules import ShardingRules


@dataclass(frozen=True)
class Question:
    """A model, a slice, and how the one runs on the other.

    Attributes:
      name: of the model, for people. mesh: how the slice is laid out.
      engine: slots, contexts and rings. weights: how they are kept, as `--weights` says.
      stored: the schemes that a checkpoint has already, where weights is auto; None = none.
      steps: decode steps in one dispatch; None = the platform's own.
    """

    name: str
    config: ModelConfig
    topology: Topology
    mesh: MeshShape
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: str = NONE
    rules: ShardingRules | None = None
    dtype: str = "auto"
    steps: int | None = None
    stored: Mapping[str, Scheme] | None = None

    @property
    def mesh_axes(self) -> tuple[str, ...]:
        """Mesh axes that a mesh may have: data, model, and what rules cut this model over, beside.

        Rows may lie on any of them: that alone makes no mesh another.
        """
        return tuple(name for name in MESH_AXES if name in (DATA, MODEL) or self._cuts(name))

    def _cuts(self, name: str) -> bool:
        tables = [] if self.rules is None else [self.rules, self.rules.prefill or self.rules]
        there = registry.axis_sizes(self.config, 1)
        return any(
            name in rules.places(axis) for rules in tables for axis in there if axis != "batch"
        )

    @property
    def settings(self) -> PlatformSettings:
        found = platform_settings("tpu" if self.topology.is_tpu else "gpu")
        return found if self.steps is None else dataclasses.replace(found, steps=self.steps)


def lay_out(question: Question, *, described: bool = False) -> Plan:
    """The plan, on a mesh without devices or on the described ones that the compiler takes.

    Raises:
      MeshError: the mesh does not cover the slice, an axis cannot be cut, or (if `described`) the
        compiler is not there. ConfigError: a value cannot be used. OutOfMemoryError: slots or
        context are auto, and nothing fits.
    """
    slices.check_mesh(question.topology, question.mesh)
    mesh: Mesh | AbstractMesh = abstract_mesh(question.mesh)
    if described:
        mesh = described_mesh(str(question.topology), question.mesh)
    return plan_to_fit(
        question.config,
        mesh=mesh,
        engine=question.engine,
        usable=capacity(question.topology),
        settings=question.settings,
        rules=question.rules,
        dtype=question.dtype,
        weights=(question.stored or NONE) if question.weights == AUTO else question.weights,
    )


def room(question: Question, plan: Plan) -> Room:
    """What else would fit where the plan lies."""
    return Room(plan, question.config, question.settings, capacity(question.topology))


def find_model(model: str) -> tuple[str, ModelConfig]:
    """A model by its name in sizes.toml or on the hub, or by a config.json or the folder of one.

    Returns:
      A name for people, and the numbers.

    Raises:
      ConfigError: none of these; or an encoder, which has no rings to plan.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        name, raw = path.parent.name or str(path), _read_json(path)
    else:
        name, raw = model, sizes.find(model, said="model")
    config = registry.read_config(raw)
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"{model} is an encoder ({config.family}): it decodes nothing to plan")
    return name, config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"model is {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"model is {path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"model is {path}: a config.json holds one object")
    return found
