"""What an estimate of temporaries grows by, for tables that need more than the default one."""

import dataclasses

from tests.planning.asked import ask
from tpuinfer.engine import scratch
from tpuinfer.model_config import Experts
from tpuinfer.planning.question import lay_out
from tpuinfer.sharding.presets import PRESETS, from_data

D, KH, F, V = 4096, 1024, 14336, 128256
TOKENS = 8 * 256
"""Of the largest prefill of a data shard."""


def plan(rules, mesh="2x4", **changed):
    table = PRESETS[rules] if isinstance(rules, str) else from_data(rules)
    asked = ask(mesh=mesh, rules=table)
    config = dataclasses.replace(asked.config, **changed)
    return lay_out(dataclasses.replace(asked, config=config))


def beyond(rules, mesh="2x4", **changed):
    """Bytes more than by the default table."""
    default = scratch.temporaries(plan("1d", mesh, **changed))
    return scratch.temporaries(plan(rules, mesh, **changed)) - default


LAYER, HEAD = (2 * D * D + 2 * D * KH + 3 * D * F) * 2 // 4, V * D * 2 // 4


def test_gathered_weights_are_there_in_part_while_a_decode_runs():
    """The compiler's own figures of 16 layers: 1334 MB for decode."""
    made = scratch.temporaries(plan("fsdp", layers=16))
    assert made == int(100e6 + 0.6 * 16 * LAYER + HEAD)
    assert 1.0 < made / 1334e6 < 1.1
    assert beyond("fsdp", "8") == 0  # nothing is cut over one data shard


def test_of_few_layers_prefill_needs_more():
    assert beyond("fsdp", layers=1) == LAYER + HEAD
    assert beyond("fsdp", layers=3) == LAYER + HEAD


def test_what_prefill_alone_gathers_counts_too():
    assert beyond({"preset": "2d", "prefill": {"gather": ["embed"]}}) == LAYER + HEAD
    assert beyond({"prefill": {"axes": {"vocab": ""}}}) == V * D * 2  # the head, whole


def test_rows_that_come_together_make_more():
    assert beyond("2d") == TOKENS * 2 * 2 * 2 * F // 4
    assert beyond("2d", "4x2") == TOKENS * 2 * 2 * 4 * F // 2
    assert beyond("data") == 0


def test_experts_of_several_data_shards_compute_the_rows_of_all():
    """Twice the rows with half of each expert: what they make is the same, only maps make more."""
    config = {"family": "mixtral", "experts": Experts(8, 2, 2048)}
    assert beyond("2d", **config) == TOKENS * 2 * 2 * D  # o_proj's sums
    over_both = {"axes": {"expert": "data"}}
    assert beyond(over_both, **config) == 0
    over_data = {"axes": {"expert": "data", "expert_mlp": ""}}
    fewer, more = (8 * 2048 * 4 * 2 // cut for cut in (8, 2))
    assert beyond(over_data, **config) == TOKENS * (more - fewer)


def test_sums_of_softmax_are_sent_and_received():
    assert beyond("context") == TOKENS * 2 * 4 * 32 * (128 + 2)
