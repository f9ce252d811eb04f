"""Where the weights of what runs here come from, and its plan.

A checkpoint, if the model is a path or a name that one can be had for; for the other names that
`models.sizes` knows, random weights, the same on every mesh: nothing is downloaded for them.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax

from tpuinfer.benchmark.weights import random_params
from tpuinfer.checkpoint import catalogue
from tpuinfer.engine import build
from tpuinfer.engine.build import Params
from tpuinfer.engine.fit import plan_to_fit
from tpuinfer.engine.memory import as_mesh_error
from tpuinfer.engine.plan import Plan, abstract_weights, repeated
from tpuinfer.errors import ConfigError
from tpuinfer.experiment.cell import Cell
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry, sizes
from tpuinfer.quant.schemes import AUTO, NONE, PUBLISHED

_SEED = 0

Origin = Literal["checkpoint", "random"]


@dataclass(frozen=True)
class Source:
    """A model whose weights are to be had.

    Attributes:
      model: as the user says it. cache_dir: where it is kept.
    """

    model: str
    cache_dir: Path | None = None

    @property
    def origin(self) -> Origin:
        """A name of sizes.toml is random, but for what the catalogue, or a folder, is called so."""
        known = self.model.lower() in sizes.sizes()
        there = self.model in catalogue.entries() or os.path.exists(self.model)
        return "random" if known and not there else "checkpoint"

    def plan(self, cell: Cell) -> Plan:
        """The plan of a cell on the devices here; fetches a checkpoint, if need be, the first time.

        Raises:
          CheckpointError, ConfigError, MeshError: what cannot work.
        """
        mesh, table = str(cell.mesh), cell.table
        if self.origin == "checkpoint":
            return build.make_plan(
                self.model,
                mesh=mesh,
                rules=table,
                dtype=cell.dtype,
                weights=cell.weights,
                engine=cell.engine,
                cache_dir=self.cache_dir,
            )
        if cell.weights == PUBLISHED:
            raise ConfigError(
                f"weights is {cell.weights!r}, and random weights never were: nearest: none"
            )
        kept = NONE if cell.weights == AUTO else cell.weights
        config = registry.read_config(sizes.find(self.model, said="model"))
        assert isinstance(config, ModelConfig), "sizes.toml holds decoders"
        return plan_to_fit(
            config, mesh=mesh, rules=table, dtype=cell.dtype, weights=kept, engine=cell.engine
        )

    def params(self, plan: Plan) -> Params:
        """The weights, on the mesh.

        Raises:
          CheckpointError: they are missing or damaged. MeshError: the devices have not enough
            memory.
        """
        if plan.path is not None:
            return build.load_params(plan)
        try:
            return random_params(abstract_weights(plan), _SEED, repeated(plan))
        except jax.errors.JaxRuntimeError as error:
            less = "a larger mesh, or --weights int8, needs less"
            raise as_mesh_error(error, plan.placements(), less) from error

    def check(self) -> None:
        """Find the model, without a plan of it.

        Raises:
          CheckpointError, ConfigError: there is none of this name, or it is an encoder.
        """
        if self.origin == "checkpoint":
            build.make_plan(self.model, cache_dir=self.cache_dir)
