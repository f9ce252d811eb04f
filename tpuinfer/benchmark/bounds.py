"""The least time that a step can take: bytes over bandwidth, or FLOPs over the matmul rate.

Counted is what no implementation can avoid: every weight read once per step, the filled part of
each live row's ring read once, the matmuls and the attention. The rest (norms, rotary embedding,
sampling) costs nothing here, so a fraction of the bound of 1 cannot be reached.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from tpuinfer.model_config import ModelConfig
from tpuinfer.quant.qarray import bytes_of

_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True)
class Machine:
    """What all devices of a mesh together can do, measured.

    Attributes:
      bandwidth: bytes of memory read per second. matmul: FLOP per second, in the dtype that runs.
    """

    bandwidth: float
    matmul: float


@dataclass(frozen=True)
class Cost:
    """Bytes read and FLOPs done, over all devices."""

    bytes: float
    flops: float

    def seconds(self, machine: Machine) -> float:
        """The larger of the two times (the roofline of doi:10.1145/1498765.1498785)."""
        return max(self.bytes / machine.bandwidth, self.flops / machine.matmul)

    def bound_by(self, machine: Machine) -> str:
        """Which of the two is larger: "memory" or "matmul"."""
        slow = self.bytes / machine.bandwidth >= self.flops / machine.matmul
        return "memory" if slow else "matmul"

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.bytes * times, self.flops * times)


@dataclass(frozen=True)
class ModelCost:
    """What a model costs per step, from its sizes and where its parts lie.

    Attributes:
      body: matmul weights that every token passes, of experts the active ones. head: those that
        only sampled positions pass.
      weight_bytes: read in a step, over all devices, copies counted; those of experts apart.
      expert_bytes: of all experts, of which a step reads those that its tokens go to, at the least
        as few as one token's.
      ring_bytes: keys and values of one token in one layer, over all devices, copies counted.
    """

    config: ModelConfig
    body: int
    head: int
    weight_bytes: int
    ring_bytes: float
    expert_bytes: int = 0

    def decode(self, rows: int, position: float) -> Cost:
        """One token for each of `rows`, with `position` tokens in each row's rings."""
        seen = self._seen(position)
        return Cost(
            self.read_bytes + rows * seen * self.ring_bytes,
            rows * (2 * (self.body + self.head) + seen * self._per_key()),
        )

    def prefill(self, tokens: int) -> Cost:
        """One prompt in one pass, of which only the last position is sampled."""
        seen = sum(self._seen(position) for position in range(1, tokens + 1))
        return Cost(
            self.read_bytes + tokens * self.config.layers * self.ring_bytes,
            2 * (tokens * self.body + self.head) + seen * self._per_key(),
        )

    @property
    def read_bytes(self) -> float:
        """The weights that no step can do without."""
        experts = self.config.experts
        share = experts.active / experts.count if experts else 0
        return self.weight_bytes + self.expert_bytes * share

    def _seen(self, position: float) -> float:
        """Keys that one query looks at, summed over the layers."""
        windows = (self.config.window(layer) for layer in range(self.config.layers))
        return sum(min(position, window or position) for window in windows)

    def _per_key(self) -> int:
        """FLOPs of one query of all heads on one key: scores, and the sum over values."""
        return 4 * self.config.heads * self.config.head_dim


def model_cost(config: ModelConfig, params: Mapping[str, Any], ring_bytes: float) -> ModelCost:
    """The cost of a model whose parameters (arrays or ShapeDtypeStructs) lie on a mesh.

    Args:
      params: by dotted name, each with a shape, a dtype and a sharding.
      ring_bytes: as in `ModelCost`.
    """
    head = _EMBEDDING if config.tie_embeddings else _HEAD
    read = {
        name: param
        for name, param in params.items()
        if name != _EMBEDDING or config.tie_embeddings  # else a step reads a few rows of it
    }
    experts = {name for name in read if ".experts." in name}
    active = config.experts.active / config.experts.count if config.experts else 0
    matmuls = {
        name: round(math.prod(param.shape) * (active if name in experts else 1))
        for name, param in read.items()
        if name.endswith(".weight") and len(param.shape) > 1
    }
    return ModelCost(
        config,
        body=sum(size for name, size in matmuls.items() if name != head),
        head=matmuls[head],
        weight_bytes=sum(_bytes(param) for name, param in read.items() if name not in experts),
        ring_bytes=ring_bytes,
        expert_bytes=sum(_bytes(read[name]) for name in experts),
    )


def _bytes(param: Any) -> int:
    """Over all devices, copies counted; of a QArray codes, scales and zeros."""
    return sum(
        bytes_of(one.sharding.shard_shape(one.shape), one.dtype) * len(one.sharding.device_set)
        for one in jax.tree.leaves(param)
    )
