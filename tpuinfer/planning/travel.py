"""Tables of rules in words, and the weights that travel where prefill has one of its own."""

from tpuinfer.engine.plan import Plan, abstract_weights
from tpuinfer.models import registry
from tpuinfer.models.blueprint import pieces, weights
from tpuinfer.planning.work import EMBEDDING
from tpuinfer.sharding import moves
from tpuinfer.sharding.moves import Moved
from tpuinfer.sharding.report import Sized
from tpuinfer.sharding.rules import LOGICAL_AXES, ShardingRules

_NAMED = 3
"""Rows that the line about prefill names."""


def kept_arrays(plan: Plan) -> dict[str, Sized]:
    """Every weight of a plan by name, as `sharding.moves` takes them."""
    abstract = abstract_weights(plan)
    return {
        name: Sized(
            w.shape, w.axes, str(plan.schemes.get(name, plan.dtype)), pieces(abstract[name], w.axes)
        )
        for name, w in weights(registry.build(plan.config)).items()
    }


def resharding(plan: Plan) -> list[Moved]:
    """What each prefill call brings elsewhere, most first; none where it has no rules of its own.

    An embedding that is only looked up stays: its rows are found where they lie.
    """
    if plan.layout.prefill is plan.layout:
        return []
    arrays = kept_arrays(plan)
    if not plan.config.tie_embeddings:
        arrays.pop(EMBEDDING)
    return moves.resharding(plan.layout, arrays)


def resharding_in_words(rows: list[Moved]) -> str:
    """One line: how much travels in a call, and what most of it is."""
    if not moves.total(rows):
        return "Prefill has rules of its own; on this mesh no weights travel for them."
    told = [f"{row.name} {row.bytes / 1e6:,.1f}" for row in rows[:_NAMED] if row.bytes]
    more = sum(row.bytes > 0 for row in rows) - len(told)
    others = f", and {more} more" if more else ""
    return (
        f"Prefill has rules of its own: each call sends a device {moves.total(rows) / 1e6:,.1f} MB "
        f"of weights ({', '.join(told)}{others})."
    )


def rules_in_words(rules: ShardingRules) -> str:
    """What a table has otherwise than the default one, on one line; "" = nothing."""
    parts = _differs(rules, ShardingRules())
    if rules.prefill is not None:
        own = _differs(rules.prefill, rules)
        parts.append(f"prefill: {', '.join(own)}" if own else "prefill: the same")
    return f"Rules, where they are not the default ones: {'; '.join(parts)}." if parts else ""


def _differs(rules: ShardingRules, base: ShardingRules) -> list[str]:
    parts = [
        f"{axis} on {'+'.join(rules.places(axis)) or 'no axis'}"
        for axis in LOGICAL_AXES
        if rules.places(axis) != base.places(axis)
    ]
    if set(rules.gather) != set(base.gather):
        parts.append(f"gathered where used: {', '.join(rules.gather) or 'nothing'}")
    if rules.reduce != base.reduce:
        parts.append(f"sums {rules.reduce}")
    changed = {axis: what for axis, what in rules.fallback.items() if what != _fallback(base, axis)}
    if changed:
        parts.append("what does not divide: " + ", ".join(f"{a} {b}" for a, b in changed.items()))
    return parts


def _fallback(rules: ShardingRules, axis: str) -> str:
    return rules.fallback.get(axis, "replicate")
