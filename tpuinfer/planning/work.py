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


@dataclass(frozen=True)
class Rows:
    """What a program call carries, on one data shard.

    Attributes:
      rows: slots, or prompts; the head is put to one token of each. width: tokens of each.
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


@dataclass(frozen=True)
class Table:
    """What a plan's weights cost on one device, whatever program runs: summed up once for all.

    Attributes:
      read: bytes that every call reads. row: bytes of a row of an embedding that is looked up.
      flops: of one token, by kind, of all maps but the head. head: of one row of the head, by kind.
      needed: as `flops`, had each expert only its own rows.
      sums: over the model axis, each a reduce-scatter and an all-gather.
    """

    read: int
    row: int
    flops: Mapping[str, float]
    head: Mapping[str, float]
    needed: float
    sums: int


def table(plan: Plan) -> Table:
    """Sum up the weights of a plan."""
    config, layout = plan.config, plan.layout
    parameters, abstract = weights(registry.build(config)), abstract_weights(plan)
    head = EMBEDDING if config.tie_embeddings else HEAD
    flops, of_head = dict.fromkeys(("bf16", "int8"), 0.0), dict.fromkeys(("bf16", "int8"), 0.0)
    read, row, needed = 0, 0, 0.0
    for name, w in parameters.items():
        size = sum(
            math.prod(shape) * bits // (8 * _cut(plan, axes))
            for shape, axes, bits in pieces(abstract[name], w.axes)
        )
        if name == EMBEDDING and not config.tie_embeddings:
            row = size // max(1, w.shape[0] // layout.shards("vocab"))
            continue
        read += size
        if not w.contracted:
            continue
        each = 2.0 * math.prod(w.shape) / _cut(plan, w.axes)
        (of_head if name == head else flops)[_kind(plan.schemes.get(name))] += each
        if name != head:
            experts = config.experts if ".experts." in name else None
            needed += each * (experts.active / experts.count if experts else 1)
    return Table(read, row, flops, of_head, needed, _sums(plan, parameters))


def decode(plan: Plan, of: Table | None = None) -> Work:
    """One step of all slots, every ring full.

    Args:
      of: the plan's `table`, if it is there already.
    """
    rings = sum(_ring_bytes(plan, spec) for classes in plan.rings for spec in classes)
    shards = plan.layout.shards("batch")
    classes = zip(plan.slots.counts, plan.slots.capacities, strict=True)
    keys = sum(count // shards * _keys(plan, capacity) for count, capacity in classes)
    return _work(plan, of or table(plan), Rows(plan.slots.per_shard), rings, keys)


def prefill(plan: Plan, rows: int, width: int, of: Table | None = None) -> Work:
    """One chunk of `width` tokens for `rows` prompts a data shard, at the end of a full context."""
    longest = [classes[-1] for classes in plan.rings]
    per_slot = sum(
        _ring_bytes(plan, spec) // max(1, spec.slots // plan.layout.shards("batch"))
        for spec in longest
    )
    keys = rows * width * _keys(plan, plan.context)
    return _work(plan, of or table(plan), Rows(rows, width), rows * per_slot, keys)


def _ring_bytes(plan: Plan, spec: RingSpec) -> int:
    """Keys and values of one ring on one device."""
    return spec.bytes // math.prod(plan.layout.shards(axis) for axis in RING_AXES)


def _work(plan: Plan, of: Table, rows: Rows, ring_bytes: int, keys: int) -> Work:
    """Args: keys: that all tokens together attend to, in all layers."""
    config, layout = plan.config, plan.layout
    attention = 4.0 * keys * config.heads / layout.shards("heads") * config.head_dim
    flops = {
        kind: each * rows.tokens + of.head[kind] * rows.rows for kind, each in of.flops.items()
    }
    flops["bf16"] += attention
    kv_heads = config.kv_heads // layout.shards("kv_heads")
    new = 2 * rows.tokens * config.layers * kv_heads * config.head_dim
    width = 1 if plan.rings[0][0].is_codes else _activation(plan)
    return Work(
        of.read,
        ring_bytes,
        rows.tokens * of.row + new * width,
        {kind: each for kind, each in flops.items() if each},
        of.needed * rows.tokens + sum(of.head.values()) * rows.rows + attention,
        collectives(plan, rows, of.sums),
    )


def _keys(plan: Plan, capacity: int) -> int:
    """Keys that a token at the end of its context attends to, in all layers."""
    config = plan.config
    return sum(min(capacity, config.window(layer) or capacity) for layer in range(config.layers))


def _activation(plan: Plan) -> int:
    """Bytes of an activation."""
    return 4 if plan.dtype == "float32" else 2


def _kind(scheme: Scheme | None) -> str:
    return "int8" if scheme is not None and scheme.word == "w8a8" else "bf16"


def _cut(plan: Plan, axes: tuple[str | None, ...]) -> int:
    return math.prod(plan.layout.shards(axis) for axis in axes if axis is not None)


def collectives(plan: Plan, rows: Rows, sums: int) -> dict[str, Collective]:
    """The sums over the model axis: a reduce-scatter and an all-gather of all tokens for each."""
    layout = plan.layout
    if not sums:
        return {}
    devices = layout.mesh.shape[MODEL]
    payload = sums * rows.tokens * padded(plan.config.embed, devices) * _activation(plan)
    if layout.rules.reduce == "exact":
        return {"all-gather": Collective(sums, payload * devices)}
    return {kind: Collective(sums, payload) for kind in ("reduce-scatter", "all-gather")}


def _sums(plan: Plan, parameters: Mapping[str, Weight]) -> int:
    """One for each map that contracts an axis that is cut, and one for an embedding that is."""
    layout = plan.layout
    if layout.mesh.shape.get(MODEL, 1) == 1:
        return 0
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
    return sums + len(mixtures)
