"""The least time for a batch of requests: what a run of any length is held against."""

import math
from collections.abc import Callable

from tpuinfer.benchmark import limits
from tpuinfer.benchmark.bounds import Cost, Machine, ModelCost, model_cost
from tpuinfer.engine.plan import Plan, abstract_weights

Floor = Callable[[int, int, int], float]
"""(requests, prompt tokens, generated tokens) -> the least seconds for all of them."""


def measured(plan: Plan) -> Floor:
    """Of a plan on this machine, whose limits are measured: that takes a second."""
    cost = model_cost(plan.config, abstract_weights(plan), ring_bytes(plan))
    return floor(cost, limits.measure(plan.layout.mesh, plan.dtype), plan.slots.slots)


def floor(cost: ModelCost, machine: Machine, slots: int) -> Floor:
    """The bound by what a model costs.

    All prompts share one read of the weights, and every decode step has all slots busy: it reads
    the weights once, and the rings in use, at the measured bandwidth, or does the matmuls of all
    slots, whichever takes longer. Requests count as if all were of the mean length.
    """

    def seconds(requests: int, prompt_tokens: int, generated: int) -> float:
        if not requests:
            return 0.0
        prompt, answer = prompt_tokens / requests, generated / requests
        one = cost.prefill(max(1, round(prompt)))
        prefilling = Cost(cost.read_bytes, requests * one.flops)
        steps = max(0, generated - requests) / slots  # the first tokens are of the prefill
        step = cost.decode(slots, prompt + answer / 2)
        return prefilling.seconds(machine) + steps * step.seconds(machine)

    return seconds


def ring_bytes(plan: Plan) -> float:
    """Keys and values of one token in one layer, over all devices, copies counted."""
    layout, ring = plan.layout, plan.rings[0][0]
    cuts = [layout.shards(axis) for axis in ("batch", "kv_heads", "length")]
    copies = layout.mesh.size / math.prod(cuts)
    return ring.bytes / (ring.slots * ring.length) * copies
