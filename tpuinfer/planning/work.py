"""What a program cannot do without, on one device: bytes of HBM, multiplications, collectives.

Reckoned from shapes, before anything is compiled. Counted are every weight once, the rings of the
program's rows once, at their longest; a table that is only looked up, by its rows. Activations are
not: they stay on the chip, or are small beside the rest. Operations are those of our programs: with
a mixture's `dense` form every expert multiplies every row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tpuinfer.cache.spec import RING_AXES, RingSpec
from tpuinfer.engine.plan import Plan, abstract_weights
from tpuinfer.models import registry
from tpuinfer.models.blueprint import Weight, pieces, weights
from tpuinfer.planning.traffic import Collective
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.mesh import MODEL
from tpuinfer.sharding.reduce import padded

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"

_ACTIVATION = 2
"""Bytes of an activation: they are bfloat16 wherever speed matters."""


@dataclass(frozen=True)
class Rows:
    """What a program call carries, on one data shard.

    Attributes:
      rows: slots, or prompts. width: tokens of each. scored: rows that the head is put to.
    """

    rows: int
    width: int = 1

    @property
    def tokens(self) -> int:
        return self.rows * self.width


@dataclass(frozen=True)
class Work:
    """One program call, or one step of a decode, on one device.

    Attributes:
      weight_bytes, ring_bytes: read from HBM. other_bytes: rows of the embedding, new keys and
        values.
      flops: operations of matmuls by the kind of their operands, "bf16" or "int8".
      needed_flops: the same, had each expert only its own rows.
      collectives: by kind, each with the bytes of its larger side.
    """

    weight_bytes: int
    ring_bytes: int
    other_bytes: int
    flops: Mapping[str, float]
    needed_flops: float
    collectives: Mapping[str, Collective] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.ring_bytes + self.other_bytes


def decode(plan: Plan) -> Work:
    """One step of all slots, every ring full."""
    rings = sum(_ring_bytes(plan, spec) for classes in plan.rings for spec in classes)
    return _work(plan, Rows(plan.slots.per_shard), rings)


def prefill(plan: Plan, rows: int, width: int) -> Work:
    """One chunk of `width` tokens for `rows` prompts a data shard, at the end of a full context."""
    longest = [classes[-1] for classes in plan.rings]
    per_slot = sum(
        _ring_bytes(plan, spec) // max(1, spec.slots // plan.layout.shards("batch"))
        for spec in longest
    )
    return _work(plan, Rows(rows, width), rows * per_slot)


def _ring_bytes(plan: Plan, spec: RingSpec) -> int:
    """Keys and values of one ring on one device."""
    return spec.bytes // math.prod(plan.layout.shards(axis) for axis in RING_AXES)


def _work(plan: Plan, rows: Rows, ring_bytes: int) -> Work:
    config, layout = plan.config, plan.layout
    blueprint, abstract = registry.build(config), abstract_weights(plan)
    head = EMBEDDING if config.tie_embeddings else HEAD
    read, looked_up, flops, needed = 0, 0, dict.fromkeys(("bf16", "int8"), 0.0), 0.0
    for name, w in weights(blueprint).items():
        size = sum(
            math.prod(shape) * bits // (8 * _cut(plan, axes))
            for shape, axes, bits in pieces(abstract[name], w.axes)
        )
        if name == EMBEDDING and not config.tie_embeddings:
            looked_up += rows.tokens * size // max(1, w.shape[0] // layout.shards("vocab"))
            continue
        read += size
        if not w.contracted:
            continue
        times = rows.rows if name == head else rows.tokens
        each = 2.0 * times * math.prod(w.shape) / _cut(plan, w.axes)
        flops[_kind(plan.schemes.get(name))] += each
        experts = config.experts if ".experts." in name else None
        needed += each * (experts.active / experts.count if experts else 1)
    attention = _attention_flops(plan, rows)
    flops["bf16"] += attention
    heads = layout.shards("kv_heads")
    new = 2 * rows.tokens * config.layers * config.kv_heads // heads * config.head_dim
    width = plan.rings[0][0]
    return Work(
        read,
        ring_bytes,
        looked_up + new * (1 if width.is_codes else _ACTIVATION),
        {kind: each for kind, each in flops.items() if each},
        needed + attention,
        collectives(plan, rows, weights(blueprint)),
    )


def _attention_flops(plan: Plan, rows: Rows) -> float:
    """Scores and sums over values, at the end of a full context."""
    config = plan.config
    heads = config.heads / plan.layout.shards("heads")
    seen = sum(
        min(plan.context, config.window(layer) or plan.context) for layer in range(config.layers)
    )
    return 4.0 * rows.tokens * seen * heads * config.head_dim


def _kind(scheme: Scheme | None) -> str:
    return "int8" if scheme is not None and scheme.word == "w8a8" else "bf16"


def _cut(plan: Plan, axes: tuple[str | None, ...]) -> int:
    return math.prod(plan.layout.shards(axis) for axis in axes if axis is not None)


def collectives(plan: Plan, rows: Rows, parameters: Mapping[str, Weight]) -> dict[str, Collective]:
    """The sums over the model axis: a reduce-scatter and an all-gather of all tokens for each.

    One for each map that contracts an axis that is cut, and one for an embedding that is.
    """
    layout, config = plan.layout, plan.config
    if layout.mesh.shape.get(MODEL, 1) == 1:
        return {}
    sums = 1 if layout.shards("vocab") > 1 else 0
    mixtures = set()
    for name, w in parameters.items():
        if not w.contracted or not name.endswith(".weight") or name in (EMBEDDING, HEAD):
            continue
        if ".experts." in name:
            if layout.shards("expert") > 1 or layout.shards("expert_mlp") > 1:
                mixtures.add(name.split(".experts.")[0])
        elif layout.shards(w.axes[-w.contracted] or "embed") > 1:
            sums += 1
    sums += len(mixtures)
    if not sums:
        return {}
    devices = layout.mesh.shape[MODEL]
    payload = sums * rows.tokens * padded(config.embed, devices) * _ACTIVATION
    if layout.rules.reduce == "exact":
        return {"all-gather": Collective(sums, payload * devices)}
    return {kind: Collective(sums, payload) for kind in ("reduce-scatter", "all-gather")}
