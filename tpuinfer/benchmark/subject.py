"""What is measured: a model on a mesh, its programs compiled, its weights read or made up."""

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from tpuinfer.benchmark import limits, peers
from tpuinfer.benchmark.bounds import Machine, ModelCost, model_cost
from tpuinfer.benchmark.floor import ring_bytes
from tpuinfer.benchmark.peers import Peer
from tpuinfer.benchmark.weights import random_params
from tpuinfer.benchmark.workload import Blank
from tpuinfer.checkpoint import load as checkpoint_load
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.repeat import once
from tpuinfer.config import Settings
from tpuinfer.engine import build, footprint
from tpuinfer.engine.accept import Tokenizer
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.fit import plan_to_fit
from tpuinfer.engine.plan import Plan, abstract_weights, repeated
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry, sizes
from tpuinfer.quant.qarray import bytes_of
from tpuinfer.quant.schemes import NONE, PUBLISHED
from tpuinfer.sharding.presets import load_rules


@dataclass(frozen=True)
class Subject:
    """A runner that is ready, and what its figures are to be compared with.

    Attributes:
      weight_bytes: of all parameters as they are kept, copies on other devices left out.
      load: the machine's load average before anything here ran: what others did meanwhile.
      peer: another implementation on the same weights, if one was asked for.
    """

    name: str
    plan: Plan
    runner: DeviceRunner
    machine: Machine
    cost: ModelCost
    weight_bytes: int
    load: float
    peer: Peer | None

    @property
    def kv_bytes(self) -> int:
        """Keys and values of all slots, full or not, over all devices, copies counted."""
        rings = (share.bytes for share in footprint.shares(self.plan) if share.kind == "rings")
        return sum(rings) * self.plan.layout.mesh.size

    @property
    def weights(self) -> str:
        """The schemes of its quantised weights and how many each has, such as "int8 (211)"."""
        counted = Counter(map(str, self.plan.schemes.values())).most_common()
        return ", ".join(f"{scheme} ({count})" for scheme, count in counted) or NONE

    @property
    def ring(self) -> str:
        """The dtype that rings keep keys and values in."""
        return self.plan.rings[0][0].dtype

    def describe_machine(self) -> dict[str, Any]:
        """Devices, software and measured limits, for a report."""
        devices = self.plan.layout.mesh.devices
        return {
            "platform": devices.flat[0].platform,
            "device_kind": devices.flat[0].device_kind,
            "devices": devices.size,
            "jax": metadata.version("jax"),
            "python": platform.python_version(),
            "load_before": self.load,
            "read_gb_per_second": self.machine.bandwidth / 1e9,
            "matmul_gflop_per_second": self.machine.matmul / 1e9,
        }

    def describe_model(self) -> dict[str, Any]:
        """Name, dtype and size, for a report."""
        return {
            "name": self.name,
            "dtype": self.plan.dtype,
            "weights": self.weights,
            "ring": self.ring,
            "weight_bytes_read": self.cost.read_bytes,
            "weight_bytes": self.weight_bytes,
            "kv_bytes": self.kv_bytes,
            "peer": None if self.peer is None else self.peer.settings,
        }


def prepare(
    chosen: Settings,
    *,
    random_weights: str | None = None,
    against: str | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> Subject:
    """Load or make the weights, compile the programs, measure the machine.

    Args:
      random_weights: a name of `models.sizes`; nothing is downloaded or read from files then.
      against: one of `peers.NAMES`, for a peer on the same weights.
      seed: of the random weights.

    Raises:
      TpuinferError: one line that names what is wrong.
    """
    load, wanted = os.getloadavg()[0], None
    if against:
        wanted = peers.parse(against, random_weights)
        peers.check_installed(wanted)
    plan, hf_config = _plan(chosen, random_weights, cache_dir, progress)
    mesh = plan.layout.mesh
    if against and mesh.devices.flat[0].platform != "cpu":
        raise ConfigError(
            f"against is {against!r}, which runs on the CPU, and the devices here are "
            f"{mesh.devices.flat[0].device_kind}: leave it out"
        )
    shapes = abstract_weights(plan)
    if plan.path is None:
        params: build.Params = random_params(shapes, seed, repeated(plan))
    else:
        params = build.load_params(plan)
    peer = None
    if wanted is not None:
        peer = peers.make(
            wanted,
            plan,
            model=chosen.model,
            hf_config=hf_config,
            params=once(params, repeated(plan)),
            cache_dir=cache_dir,
            progress=progress,
        )
    return Subject(
        random_weights or chosen.model,
        plan,
        build.start(plan, params, cache_dir=cache_dir, progress=progress),
        limits.measure(mesh, plan.dtype),
        model_cost(plan.config, shapes, ring_bytes(plan)),
        sum(bytes_of(part.shape, part.dtype) for part in jax.tree.leaves(params)),
        load,
        peer,
    )


def vocabulary(plan: Plan) -> Tokenizer:
    """The model's own tokenizer, or letters for a model that has none.

    Raises:
      TokenizerError: the checkpoint's cannot be read.
    """
    if plan.path is None:
        return Blank(plan.config.vocab)
    from tpuinfer.tokenizer.load import load_tokenizer

    return load_tokenizer(plan.path, vocab_size=plan.config.vocab)


def _plan(
    chosen: Settings, random_weights: str | None, cache_dir: Path | None, progress: Progress
) -> tuple[Plan, Mapping[str, Any]]:
    """The plan, and the config.json it follows from."""
    engine, mesh, dtype, weights = chosen.engine(), chosen.mesh, chosen.dtype, chosen.weights
    if random_weights:
        if weights == PUBLISHED:
            raise ConfigError(
                f"weights is {weights!r}, and random weights never were: nearest: none"
            )
        hf_config = sizes.find(random_weights)
        config = registry.read_config(hf_config)
        assert isinstance(config, ModelConfig), "sizes.toml holds decoders"
        rules = load_rules(chosen.rules)
        plan = plan_to_fit(
            config, mesh=mesh, rules=rules, dtype=dtype, weights=weights, engine=engine
        )
        return plan, hf_config
    plan = build.make_plan(
        chosen.model,
        mesh=mesh,
        rules=chosen.rules,
        dtype=dtype,
        weights=weights,
        engine=engine,
        cache_dir=cache_dir,
        progress=progress,
    )
    assert plan.path is not None
    return plan, checkpoint_load.read_config(plan.path)
