"""A list of requests through an engine, end to end: queue, prefill, decode and text. No jax."""

import time
from collections.abc import Sequence

from tpuinfer.benchmark.workload import Item
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams


def serve(engine: Engine, items: Sequence[Item]) -> float:
    """Seconds until every request has all its tokens; all are added at once.

    Raises:
      RequestError: one does not fit the context.
    """
    start = time.perf_counter()
    for index, item in enumerate(items):
        how = SamplingParams(temperature=0, max_tokens=item.new_tokens, ignore_eos=True)
        engine.add(Request(f"bench-{index}", item.prompt, how))
    made = 0
    while engine.has_work:
        made += sum(len(delta.token_ids) for delta in engine.step())
    seconds = time.perf_counter() - start
    wanted = sum(item.new_tokens for item in items)
    assert made == wanted, f"{made} tokens came, {wanted} were asked for"
    return seconds
