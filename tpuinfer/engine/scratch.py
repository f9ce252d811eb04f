"""What programs need beside weights, rings and state, estimated before they are compiled.

Both estimates are fitted to what the TPU compiler says of a grid of models and meshes (BUILD_NOTES.md
has it).
"""

from tpuinfer.engine.plan import Plan
from tpuinfer.programs.closed_set import narrow_rows, prefill_shapes


def temporaries(plan: Plan) -> int:
    """Bytes on one device that the most demanding program takes while it runs."""
    return 150_000_000


def code(plan: Plan) -> int:
    """Bytes on one device that all programs take, loaded."""
    shapes = prefill_shapes(plan.settings, plan.buckets, plan.slots.per_shard)
    programs = (
        sum(map(len, shapes.values())) + len(narrow_rows(plan.settings, plan.slots.per_shard)) + 1
    )
    return programs * plan.config.layers * 3_000_000
