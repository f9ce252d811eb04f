"""Perplexity of a text far longer than the ring, for each 1024 tokens; run it by hand.

    python tests/parity/long_text.py

One slot, teacher-forced in chunks, through the blocks that the programs run.
"""

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tpuinfer.cache.held import Ring, Rows, horizons
from tpuinfer.cache.ring import RingAttention
from tpuinfer.checkpoint.load import load_params
from tpuinfer.config import EngineConfig
from tpuinfer.engine.build import make_plan
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params, bind
from tpuinfer.tokenizer.load import load_tokenizer

CHUNK, PART, TOTAL = 128, 1024, 8192
RINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "roll, 512 columns, 4 sinks": ("1x512", {"context_policy": "roll", "sinks": 4}),
    "roll, 512 columns, no sinks": ("1x512", {"context_policy": "roll", "sinks": 0}),
    "all 8192": ("1x8192", {}),
}


def losses(slots: str, engine: dict[str, Any]) -> NDArray[np.float32]:
    """[TOTAL] negative log-probability of each next token, in nats."""
    config = EngineConfig.parse(slots, **engine)
    plan = make_plan("smollm2-135m-instruct", dtype="float32", engine=config)
    assert plan.path is not None
    blueprint = registry.build(plan.config)
    params = load_params(plan.path, abstract_params(blueprint, plan.layout, plan.dtype))
    ids = load_tokenizer(plan.path).encode("\n\n".join(topics.values()))[: TOTAL + 1]
    rings = tuple(
        tuple(
            Ring(jnp.zeros(one.shape), jnp.zeros(one.shape), one.window, one.sinks) for one in layer
        )
        for layer in plan.rings
    )

    @jax.jit
    def score(params, rings, tokens, targets, start):
        model, slot = bind(blueprint, params), jnp.zeros(1, jnp.int32)
        rows = Rows(slot, start, jnp.full(1, CHUNK, jnp.int32), horizons(rings, slot, 1))
        attend = RingAttention(plan.layout, plan.settings.block, "prefill")
        x, rings = model.hidden(tokens, rings, rows, attend, plan.layout, jnp.dtype(plan.dtype))
        logits = model.logits(x[0], plan.layout)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return rings, jax.nn.logsumexp(logits, axis=-1) - chosen

    found = []
    for start in range(0, TOTAL, CHUNK):
        tokens = np.array([ids[start : start + CHUNK]], np.int32)
        targets = np.array(ids[start + 1 : start + CHUNK + 1], np.int32)
        rings, loss = score(params, rings, tokens, targets, np.array([start], np.int32))
        found.append(np.asarray(loss))
    return np.concatenate(found)


if __name__ == "__main__":
    for name, (slots, engine) in RINGS.items():
        each = losses(slots, engine)
        parts = " ".join(f"{np.exp(part.mean()):.2f}" for part in each.reshape(-1, PART))
        print(f"{name}: {np.exp(each.mean()):.2f} ({parts})", flush=True)
