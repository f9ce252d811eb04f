"""Questions that tests put to the planner."""

from typing import Any

from tpuinfer.config import EngineConfig
from tpuinfer.planning import topology as slices
from tpuinfer.planning.question import Question, find_model
from tpuinfer.sharding.mesh import parse_mesh


def ask(
    model: str = "llama-3.1-8b",
    topology: str = "v5e:2x4",
    mesh: str = "8",
    slots: str = "64x2048",
    context: str | None = None,
    ring: str = "auto",
    **others: Any,
) -> Question:
    """Llama-3.1-8B, 64 slots of 2048, on an 8-chip v5e; or what is named."""
    name, config = find_model(model)
    engine = EngineConfig.parse(slots, context, ring=ring)
    return Question(name, config, slices.parse(topology), parse_mesh(mesh), engine, **others)
