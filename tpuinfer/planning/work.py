"""What a program cannot do without, on one device: bytes of HBM, multiplications, collectives.

Reckoned from shapes and places, before anything is compiled. Counted are every weight once, as the
products read it; the rings of the program's rows once, at their longest; a table that is only
looked up, by its rows; weights that are gathered, or wanted elsewhere than they are kept, read and
written once more. Activations are not: they stay on the chip, or are small beside the rest.
Operations are those of our programs: with a mixture's `dense` form every expert multiplies every
row.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpuinfer.cache.spec import RING_AXES, RingSpec
from tpuinfer.engine.plan import Plan, abstract_weights
from tpuinfer.models import registry
from tpuinfer.models.blueprint import Axes, Weight, pieces, weights
from tpuinfer.planning import exchanges
from tpuinfer.planning.exchanges import Exchange, Lies, Piece, Tally, by_kind
from tpuinfer.planning.traffic import Collective
from tpuinfer.quant.schemes import Scheme
from tpuinfer.sharding.layout import Layout

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"

_INTO = {"embed": "residual"}
"""A weight's axis -> that of what it makes, or is put to, where they differ."""


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
        values, and weights that are brought together before they are read.
      flops: operations of matmuls by the kind of their operands, "bf16" or "int8".
      needed_flops: the same, had each expert only its own rows.
      exchanges: collectives by kind and mesh axes.
    """

    weight_bytes: int
    ring_bytes: int
    other_bytes: int
    flops: Mapping[str, float]
    needed_flops: float
    exchanges: Sequence[Exchange] = ()

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.ring_bytes + self.other_bytes

    @property
    def collectives(self) -> dict[str, Collective]:
        """By kind, each with the bytes of its larger side."""
        return by_kind(self.exchanges)


@dataclass(frozen=True)
class Costs:
    """What a plan's weights cost on one device, in all programs that share a layout.

    Attributes:
      read: bytes that every call reads. row: bytes of a row of an embedding that is looked up, for
        each token of a data shard.
      flops: of one token of a data shard, by kind, of all maps but the head. head: of one row of
        the head, by kind.
      needed: as `flops`, had each expert only its own rows.
      tally: what travels.
    """

    read: int
    row: int
    flops: Mapping[str, float]
    head: Mapping[str, float]
    needed: float
    tally: Tally


@dataclass(frozen=True)
class Table:
    """What a plan's weights cost, summed up once for all programs."""

    decode: Costs
    prefill: Costs


@dataclass(frozen=True)
class _Group:
    """Parameters of the same kind in several layers.

    Attributes:
      kind: their name without the number of the layer. arrays: as `blueprint.pieces` gives them.
    """

    kind: str
    w: Weight
    arrays: tuple[Piece, ...]
    scheme: Scheme | None


def table(plan: Plan) -> Table:
    """Sum up the weights of a plan."""
    groups = _groups(plan)
    decode = _costs(plan, plan.layout, groups)
    if plan.layout.prefill is plan.layout:
        return Table(decode, decode)
    return Table(decode, _costs(plan, plan.layout.prefill, groups))


def _groups(plan: Plan) -> Counter[_Group]:
    parameters, abstract = weights(registry.build(plan.config)), abstract_weights(plan)
    return Counter(
        _Group(
            re.sub(r"\blayers\.\d+\b", "layers.*", name),
            w,
            tuple(pieces(abstract[name], w.axes)),
            plan.schemes.get(name),
        )
        for name, w in parameters.items()
    )


def _costs(plan: Plan, layout: Layout, groups: Counter[_Group]) -> Costs:
    config = plan.config
    head = EMBEDDING if config.tie_embeddings else HEAD
    flops, of_head = dict.fromkeys(("bf16", "int8"), 0.0), dict.fromkeys(("bf16", "int8"), 0.0)
    read, row, needed, tally = 0, 0, 0.0, Tally(layout, _activation(plan))
    for one, count in groups.items():
        if one.kind == EMBEDDING != head:
            row = _row(layout, one)
            continue
        tally.times = count
        read += count * exchanges.brought(tally, one.arrays)
        w = one.w
        if not w.contracted:
            continue
        met = _cut(layout, ("batch",)) / _over(layout, exchanges.meeting(layout, w).rows)
        each = count * met * 2.0 * math.prod(w.shape) / _cut(layout, w.axes)
        (of_head if one.kind == head else flops)[_kind(one.scheme)] += each
        if one.kind != head:
            experts = config.experts if ".experts." in one.kind else None
            needed += each * (experts.active / experts.count if experts else 1)
    _travelling(plan, groups, tally)
    return Costs(read, row, flops, of_head, needed, tally)


def _row(layout: Layout, one: _Group) -> int:
    """Bytes that a device looks up in an embedding [V, D] for each token of its data shard."""
    size = sum(
        math.prod(shape) * bits // (8 * math.prod(map(layout.stored_shards, filter(None, axes))))
        for shape, axes, bits in one.arrays
    )
    kept = {name for axis in ("vocab", "embed") for name in layout.stored_axes_of(axis)}
    met = _over(layout, [name for name in layout.axes_of("batch") if name in kept])
    return met * (size // max(1, one.w.shape[0] // layout.stored_shards("vocab")))


def _travelling(plan: Plan, groups: Counter[_Group], tally: Tally) -> None:
    """All activations that go over links."""
    config, layout, tally.times = plan.config, tally.layout, 1
    head = EMBEDDING if config.tie_embeddings else HEAD
    home = exchanges.place(layout, ("residual",))
    exchanges.looked_up(tally, config.embed)
    met: dict[tuple[str, Lies], Counter[str]] = {}
    mixtures: Counter[str] = Counter()
    for one, count in groups.items():
        tally.times, w = count, one.w
        if one.kind == head:
            exchanges.through(tally, w, home, ("vocab",), "row", 4)
        elif one.kind.endswith("norm.weight") and w.shape == (config.embed,):
            exchanges.normed(tally, "row" if one.kind == "norm.weight" else "token")
        elif not w.contracted or one.kind == EMBEDDING or not one.kind.endswith(".weight"):
            continue
        elif ".experts." in one.kind:
            mixtures[one.kind] += count
        else:
            ins = w.axes[-w.contracted :]
            given = None if ins == ("embed",) else exchanges.place(layout, ins)
            into = tuple(_INTO.get(axis or "", axis) for axis in w.axes[: -w.contracted])
            exchanges.through(tally, w, given, into, "token", tally.width)
            if given is None:
                key = one.kind.rsplit(".", 2)[0], exchanges.meeting(layout, w)
                met.setdefault(key, Counter())[one.kind] += count
    for (_, meets), kinds in met.items():  # maps of the same rows bring them together once
        tally.times = max(kinds.values())
        tally.move(config.embed, home, meets)
    if mixtures:
        tally.times = max(mixtures.values())
        exchanges.mixed(tally, config.embed)
    tally.times = 1
    exchanges.attended(tally, config.layers, config.heads, config.head_dim)


def decode(plan: Plan, of: Table | None = None) -> Work:
    """One step of all slots, every ring full.

    Args:
      of: the plan's `table`, if it is there already.
    """
    rings = sum(_ring_bytes(plan, spec) for classes in plan.rings for spec in classes)
    shards = plan.layout.shards("batch")
    classes = zip(plan.slots.counts, plan.slots.capacities, strict=True)
    keys = sum(count // shards * _keys(plan, capacity) for count, capacity in classes)
    return _work(plan, (of or table(plan)).decode, Rows(plan.slots.per_shard), rings, keys)


def prefill(plan: Plan, rows: int, width: int, of: Table | None = None) -> Work:
    """One chunk of `width` tokens for `rows` prompts a data shard, at the end of a full context."""
    longest = [classes[-1] for classes in plan.rings]
    per_slot = sum(
        _ring_bytes(plan, spec) // max(1, spec.slots // plan.layout.shards("batch"))
        for spec in longest
    )
    keys = rows * width * _keys(plan, plan.context)
    return _work(plan, (of or table(plan)).prefill, Rows(rows, width), rows * per_slot, keys)


def _ring_bytes(plan: Plan, spec: RingSpec) -> int:
    """Keys and values of one ring on one device."""
    return spec.bytes // _cut(plan.layout, RING_AXES)


def _work(plan: Plan, of: Costs, rows: Rows, ring_bytes: int, keys: int) -> Work:
    """Args: keys: that all tokens together attend to, in all layers."""
    config, layout = plan.config, plan.layout
    attended = config.heads / _cut(layout, ("kv_heads", "length"))
    attention = 4.0 * keys * attended * config.head_dim
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
        rows.tokens * of.row + new * width + of.tally.moved,
        {kind: each for kind, each in flops.items() if each},
        of.needed * rows.tokens + sum(of.head.values()) * rows.rows + attention,
        of.tally.exchanges(rows.tokens, rows.rows),
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


def _cut(layout: Layout, axes: Axes) -> int:
    return math.prod(layout.shards(axis) for axis in axes if axis is not None)


def _over(layout: Layout, mesh_axes: Sequence[str]) -> int:
    return math.prod(layout.mesh.shape[name] for name in mesh_axes)
