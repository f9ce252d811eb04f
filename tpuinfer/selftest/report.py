"""The whole selftest, as findings to print and figures to send back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tpuinfer.benchmark import subject as subjects
from tpuinfer.benchmark.subject import Subject
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.config import EngineConfig, Settings
from tpuinfer.diagnosis.findings import Finding
from tpuinfer.engine.fit import plan_to_fit
from tpuinfer.errors import OutOfMemoryError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry, sizes
from tpuinfer.selftest import kernels, whole
from tpuinfer.sharding.mesh import build_mesh, parse_mesh

MODELS = ("llama-3.1-8b", "llama-3.2-1b", "smollm2-135m")
"""Tried in this order on accelerators: the largest that fits says the most."""

Say = Callable[[Finding], None]


@dataclass(frozen=True)
class Report:
    """Findings in order, and the figures behind them."""

    findings: list[Finding]
    figures: dict[str, Any]


def selftest(
    mesh: str,
    model: str | None = None,
    *,
    slots: int = 16,
    context: int = 1024,
    cache_dir: Path | None = None,
    progress: Progress = silent,
    say: Say = lambda finding: None,
) -> Report:
    """Run every check on the devices of a mesh.

    Args:
      model: a name of `models.sizes`, whose weights are made up; None = by the devices' memory.
      say: told each finding as it comes.

    Raises:
      TpuinferError: the mesh cannot be, or no model fits.
    """
    devices = build_mesh(parse_mesh(mesh))
    platform = devices.devices.flat[0].platform
    findings: list[Finding] = []

    def told(*some: Finding) -> None:
        for one in some:
            findings.append(one)
            say(one)

    if platform == "tpu":
        for finding in kernels.check(devices, "pallas"):
            told(finding)
    elif platform == "cpu":  # here XLA runs the kernels, slowly, which proves nothing of a TPU
        for finding in kernels.check(devices, "interpret", kernels.CASES[::5]):
            told(finding)
    name = model or _model(devices, mesh, slots, context, platform)
    subject = _subject(name, mesh, slots, context, cache_dir, progress)
    told(whole.bits(subject))
    found, memory = whole.memory(subject)
    told(*found)
    found, speed = whole.speed(subject)
    told(*found)
    machine = subject.describe_machine()
    figures = {"model": name, **whole.settings_of(subject.plan), "memory": memory, "speed": speed}
    return Report(findings, {"machine": machine, **figures})


def _subject(
    name: str, mesh: str, slots: int, context: int, cache_dir: Path | None, progress: Progress
) -> Subject:
    chosen = Settings(mesh=mesh, slots=slots, context=context)
    return subjects.prepare(chosen, random_weights=name, cache_dir=cache_dir, progress=progress)


def _model(devices: Mesh, mesh: str, slots: int, context: int, platform: str) -> str:
    """The first of `MODELS` that fits; on a CPU, where nothing is proven by size, the smallest."""
    if platform == "cpu":
        return MODELS[-1]
    for name in MODELS:
        config = registry.read_config(sizes.find(name))
        assert isinstance(config, ModelConfig), "sizes.toml holds decoders"
        try:
            plan = plan_to_fit(config, mesh=devices, engine=EngineConfig.parse("auto", context))
        except OutOfMemoryError:
            continue
        if plan.slots.slots >= slots:
            return name
    raise OutOfMemoryError(
        f"no model of {', '.join(MODELS)} fits {slots} slots of {context} on {mesh}"
    )
