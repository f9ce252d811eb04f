"""Other weights for a plan that runs already, from a checkpoint below one folder."""

import os
from pathlib import Path, PurePosixPath

import jax

from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.engine.build import Params
from tpuinfer.engine.plan import Plan, abstract_weights
from tpuinfer.errors import CheckpointError
from tpuinfer.model_config import EncoderConfig
from tpuinfer.models import registry


def below(root: str, name: str) -> Path:
    """The checkpoint directory `name` below `root`, a folder here or in object storage.

    Raises:
      CheckpointError: it is not below it, by its name or by a link.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{name!r}: it must be a name below {root}, without '..'")
    path = locate(root) / str(PurePosixPath(*parts))
    if not is_remote(root):
        folder = os.path.realpath(root)
        if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
            raise CheckpointError(f"{name!r}: it leads out of {root}")
    return path


def read_weights(plan: Plan, path: Path) -> Params:
    """The weights of a checkpoint of the same model, where the plan has them; both fit at once.

    Raises:
      CheckpointError: it is missing, damaged, or of another model; or the devices have no room.
    """
    config = registry.read_config(checkpoint_load.read_config(path))
    if isinstance(config, EncoderConfig) or config.settled(plan.context) != plan.config:
        raise CheckpointError(f"{path}: its config.json is that of another model")
    try:
        return checkpoint_load.load_params(path, abstract_weights(plan))
    except jax.errors.JaxRuntimeError as error:
        raise CheckpointError(
            f"{path}: the devices have no room for it beside the weights that serve"
        ) from error
