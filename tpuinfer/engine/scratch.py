"""What programs need beside weights, rings and state, estimated before they are compiled.

Fitted to what the TPU compiler says of a grid of models and meshes, which BUILD_NOTES.md has. What
runs elsewhere needs other amounts, mostly less.
"""

from tpuinfer.engine.plan import Plan
from tpuinfer.programs.closed_set import narrow_rows, prefill_shapes

_LEAST = 100e6
_PER_COLUMN = 15
"""Bytes of a token for each of its D columns: some seven activations of two bytes."""

_DECODE_CODE, _PREFILL_CODE = 1e6, 2e6
"""Bytes of a layer's part of a program. The compiler's figures go from a fifth of this to four
times as much, by the slice's shape more than by the program."""


def temporaries(plan: Plan) -> int:
    """Bytes on one device that the most demanding program takes while it runs.

    That is the prefill of the most tokens: activations, and what every expert makes of every token.
    """
    shapes = prefill_shapes(plan.settings, plan.buckets, plan.slots.per_shard)
    tokens = max(rows * width for width, every in shapes.items() for rows in every)
    config, each = plan.config, _PER_COLUMN * plan.config.embed
    if (experts := config.experts) is not None:
        cut = plan.layout.shards("expert") * plan.layout.shards("expert_mlp")
        each += 4 * experts.count * experts.mlp // cut
    return int(_LEAST + tokens * each)


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
