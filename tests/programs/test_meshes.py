"""The same answers on every mesh: heads cut, heads that do not divide, and an odd everything."""

import pytest

from tpuinfer.testing import reference
from tpuinfer.testing.drive import run, works
from tpuinfer.testing.tiny import ODD, TINY, tiny

PROMPTS = [[3, 91, 7, 11, 2], list(range(40, 73)), [64], [5, 8, 13, 21] * 4]
LIMIT = 10


@pytest.mark.parametrize("mesh", ["1", "2x4", "8"])
@pytest.mark.parametrize("config", [TINY, ODD], ids=["divides", "odd"])
def test_greedy_tokens_are_those_of_the_reference(config, mesh):
    model = (
        tiny(config, mesh) if (config, mesh) == (TINY, "1") else tiny(config, mesh, buckets=(16,))
    )
    sharded = model.layout.shards("heads")
    assert sharded == (model.layout.mesh.shape["model"] if config is TINY else 1)
    runner = model.runner()
    rows = [works(runner, prompt, slot=s, limit=LIMIT) for s, prompt in enumerate(PROMPTS)]
    for prompt, answer in zip(PROMPTS, run(runner, *rows, steps=4), strict=True):
        tokens, logprobs = reference.judge(config, model.weights, prompt, answer.tokens)
        assert len(tokens) == LIMIT
        assert answer.tokens == tokens
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-5)
