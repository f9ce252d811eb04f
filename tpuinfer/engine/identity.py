"""What of a model and its plan an answer's bits depend on, as data to write down and to compare."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tpuinfer.checkpoint import layout
from tpuinfer.engine.encoder import EncoderPlan
from tpuinfer.engine.plan import Plan
from tpuinfer.errors import ConfigError


def identity(
    plan: Plan | EncoderPlan, *, name: str, chat_template: str | Path | None = None
) -> dict[str, Any]:
    """Flat JSON: two that are equal answer alike, two that differ in anything may not.

    The number of slots is in it, for a row's bits may change with the rows beside it where a
    platform picks another kernel; the folder is not.

    Args:
      name: the model's, for people.
      chat_template: the file that is used instead of the checkpoint's own.

    Raises:
      CheckpointError: the checkpoint's tables cannot be read. ConfigError: nor the chat template.
    """
    mesh = plan.layout.mesh
    device = mesh.devices.flat[0]
    config = plan.published if isinstance(plan, Plan) else plan.config
    said: dict[str, Any] = {
        "name": name,
        **_checkpoint(plan.path),
        "config": _digest(dataclasses.asdict(config)),
        "dtype": plan.dtype,
        "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        "rules": _digest(dataclasses.asdict(plan.layout.rules)),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "programs": _digest(dataclasses.asdict(plan.settings)),
        "context": plan.context,
    }
    if isinstance(plan, Plan):
        slots = zip(plan.slots.counts, plan.slots.capacities, strict=True)
        said["slots"] = ",".join(f"{count}x{capacity}" for count, capacity in slots)
        said["context_policy"] = plan.engine.context_policy
        said["ring"] = plan.rings[0][0].dtype
        if plan.schemes:
            said["schemes"] = _digest({name: str(one) for name, one in plan.schemes.items()})
        said["sinks"] = plan.engine.sinks
    else:
        said["pooling"] = _digest(dataclasses.asdict(plan.pooling))
    if chat_template is not None:
        said["chat_template"] = _template(chat_template)
    return said | {"fingerprint": _digest(said)}


def _checkpoint(path: Path | None) -> dict[str, str]:
    """Its weights by what they were made from, its other files by their sums."""
    if path is None:
        return {}
    manifest = layout.read_manifest(path)
    sums = layout.sums_of_texts(path)
    return {
        "weights": manifest.sha256,
        "stored": manifest.dtype,
        "params": _digest(manifest.to_json()["params"]),
        "files": _digest(sums),
    }


def _template(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"chat-template is {str(path)!r}: cannot be read ({error.strerror})"
        ) from error


def _digest(value: Any) -> str:
    """Of JSON, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
