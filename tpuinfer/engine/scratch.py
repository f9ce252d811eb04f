"""What programs need beside weights, rings and state, estimated before they are compiled.

Fitted to what the TPU compiler says of a grid of models and meshes, which BUILD_NOTES.md has. What
runs elsewhere needs other amounts, mostly less.
"""

import math
from collections import Counter

from tpuinfer.engine.plan import Plan, abstract_weights
from tpuinfer.models import registry
from tpuinfer.models.blueprint import Axes, Weight, pieces, weights
from tpuinfer.programs.closed_set import narrow_rows, prefill_shapes
from tpuinfer.sharding.layout import Layout

_LEAST = 100e6
_PER_COLUMN = 15
"""Bytes of a token for each of its D columns: some seven activations of two bytes."""

_LAYERS_AT_ONCE = 2
"""Whose gathered weights are there in prefill: the one that runs, and the next on its way."""

_AHEAD = 0.6
"""The part of all layers' gathered weights that a decode holds: the compiler gathers ahead."""

_DECODE_CODE, _PREFILL_CODE = 1e6, 2e6
"""Bytes of a layer's part of a program. The compiler's figures go from a fifth of this to four
times as much, by the slice's shape more than by the program."""


def temporaries(plan: Plan) -> int:
    """Bytes on one device that the most demanding program takes while it runs.

    That is the prefill of the most tokens: activations, and what every expert makes of every token;
    of several data shards, where they come together. Weights that are gathered lie there too; a
    decode may hold more of them.
    """
    shapes = prefill_shapes(plan.settings, plan.buckets, plan.slots.per_shard)
    tokens = max(rows * width for width, every in shapes.items() for rows in every)
    config, layout, each = plan.config, plan.layout.prefill, _PER_COLUMN * plan.config.embed
    if (experts := config.experts) is not None:
        cut = layout.shards("expert") * layout.shards("expert_mlp")
        met = _met(layout, ("expert", "expert_mlp"))
        each += 4 * met * experts.count * experts.mlp // cut
    each += _together(plan) + _seen(plan)
    layers, others = _gathered(plan, layout)
    prefill = tokens * each + sum(sorted([*layers, *others])[-_LAYERS_AT_ONCE:])
    layers, others = _gathered(plan, plan.layout)
    decode = _AHEAD * sum(layers) + max(others, default=0)
    return int(_LEAST + max(prefill, decode))


def _together(plan: Plan) -> int:
    """Bytes of a token for what the widest map makes of several data shards' rows, and its sum."""
    layout, width = plan.layout.prefill, 4 if plan.dtype == "float32" else 2
    if not set(layout.axes_of("batch")) & {name for a in _OF_MAPS for name in layout.axes_of(a)}:
        return 0

    def made(w: Weight) -> int:
        outs = w.axes[: -w.contracted]
        cut = math.prod(layout.shards(axis) for axis in outs if axis)
        return _met(layout, w.axes) * math.prod(w.shape[: -w.contracted]) // cut

    every = weights(registry.build(plan.config)).items()
    maps = [w for name, w in every if w.contracted and name.startswith("layers.")]
    wide = [made(w) for w in maps if _met(layout, w.axes) > 1 and "expert" not in w.axes]
    return 2 * width * max(wide, default=0)


_OF_MAPS = ("embed", "mlp")
"""Axes of weights that may lie where rows do; those of experts are counted apart."""


def _seen(plan: Plan) -> int:
    """Bytes of a token for sums of softmax that are sent and received, of rings cut in length."""
    layout, config = plan.layout, plan.config
    if layout.shards("length") == 1:
        return 0
    return 2 * 4 * config.heads // layout.shards("kv_heads") * (config.head_dim + 2)


def _met(layout: Layout, axes: Axes) -> int:
    """How many data shards come together where such a weight lies."""
    taken = {name for axis in axes for name in layout.axes_of(axis)}
    return math.prod(layout.mesh.shape[name] for name in layout.axes_of("batch") if name in taken)


def _gathered(plan: Plan, layout: Layout) -> tuple[list[int], list[int]]:
    """Bytes of weights that are used elsewhere than they are kept: of each layer, and of others."""
    if layout.kept is layout and not layout.rules.gather:
        return [], []
    parameters = weights(registry.build(plan.config))
    axes_of = {w.axes for w in parameters.values()}
    elsewhere = {axes for axes in axes_of if layout.stored(axes) != layout.spec(axes)}
    moved = {name: w.axes for name, w in parameters.items() if w.axes in elsewhere}
    if not plan.config.tie_embeddings:
        moved.pop("embed_tokens.weight", None)  # it is looked up where it lies
    abstract, sizes = abstract_weights(plan), Counter[str]()
    for name, axes in moved.items():
        layer = ".".join(name.split(".")[:2])
        sizes[layer] += sum(
            math.prod(shape) * bits // (8 * math.prod(layout.shards(one) for one in own if one))
            for shape, own, bits in pieces(abstract[name], axes)
        )
    layers = [size for name, size in sizes.items() if name.startswith("layers.")]
    return layers, [size for name, size in sizes.items() if not name.startswith("layers.")]


def code(plan: Plan) -> int:
    """Bytes on one device to leave for the programs themselves, which all stay there.

    A reserve: whether what the compiler calls generated code lies in HBM, no TPU has told.
    """
    per_shard = plan.slots.per_shard
    shapes = prefill_shapes(plan.settings, plan.buckets, per_shard)
    prefills, decodes = (
        sum(map(len, shapes.values())),
        1 + len(narrow_rows(plan.settings, per_shard)),
    )
    return int(plan.config.layers * (_PREFILL_CODE * prefills + _DECODE_CODE * decodes))
