"""Other weights for a plan that runs already: arrays, or a checkpoint below one folder."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.repeat import published, repeat
from tpuinfer.engine.build import Params
from tpuinfer.engine.plan import Plan, abstract_weights, repeated
from tpuinfer.errors import CheckpointError, RequestError
from tpuinfer.model_config import EncoderConfig
from tpuinfer.models import registry
from tpuinfer.programs.signature import differences


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
    if isinstance(config, EncoderConfig) or config.settled(plan.context) != plan.published:
        raise CheckpointError(f"{path}: its config.json is that of another model")
    try:
        return checkpoint_load.load_params(path, abstract_weights(plan), repeated(plan))
    except jax.errors.JaxRuntimeError as error:
        raise CheckpointError(
            f"{path}: the devices have no room for it beside the weights that serve"
        ) from error


def as_planned(params: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Arrays of the published shapes as a plan has them: KV heads repeated where it repeats them.

    Args:
      params: those parameters may lie anywhere; the others are not looked at.

    Raises:
      RequestError: one has not the shape and dtype that was published.
    """
    abstract, made = abstract_weights(plan), dict(params)
    for name, repeats in repeated(plan).items():
        if name not in params:
            continue
        one = published(abstract[name], repeats)
        bare = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), one)
        if found := differences(as_planned, ({name: bare},), ({name: params[name]},)):
            raise RequestError(
                f"the new weights do not fit: {found[0]}; nearest: arrays of the published shapes, "
                f"each of whose KV heads is kept {repeats} times here",
                param="params",
            )
        there = jax.tree.map(
            lambda part, want: jax.device_put(part, want.sharding), params[name], one
        )
        made[name] = repeat(there, abstract[name])
    return made
