"""What takes the memory of a device, by arithmetic done by hand; no array is made."""

import pytest

from tpuinfer.config import EngineConfig
from tpuinfer.engine import footprint
from tpuinfer.engine.encoder import encoder_plan_of
from tpuinfer.engine.footprint import Share
from tpuinfer.engine.plan import plan_of
from tpuinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_IDS
from tpuinfer.model_config import EncoderConfig, Pooling
from tpuinfer.models import registry
from tpuinfer.programs.manifest import Entry

GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "rope_theta": 150000.0,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}


def planned(hf, slots, mesh="1"):
    config = registry.read_config(hf)
    return plan_of(config, mesh=mesh, dtype="bfloat16", engine=EngineConfig.parse(slots))


def rings(plan):
    return {row.group: row for row in footprint.shares(plan) if row.kind == "rings"}


def entry(name, temp, output, alias):
    return Entry(name, "", 0.0, 0.0, 10**9, alias, temp, output, None, "off")


def test_gemma_3_keeps_the_window_in_five_layers_of_six():
    """4 KV heads of 256, keys and values of 4 bytes on a CPU, 8 slots: 65536 bytes a column."""
    column = 8 * 4 * 256 * 2 * 4
    assert rings(planned(GEMMA_3_4B, "8x32768")) == {
        "global": Share("rings", "global", 5, 5 * 32768 * column, 32768, 8),
        "window 1024": Share("rings", "window 1024", 29, 29 * 1024 * column, 1024, 8),
    }


def test_gpt_oss_keeps_the_window_in_every_other_layer_of_each_class():
    """On four devices each holds 2 of 8 KV heads of 64: 1024 bytes a column and slot."""
    column = 2 * 64 * 2 * 4
    found = rings(planned(GPT_OSS_20B, "6x4096,2x131072", mesh="4"))
    sizes = {name: (row.columns, row.slots, row.bytes) for name, row in found.items()}
    assert sizes == {
        "4096: global": (4096, 6, 12 * 4096 * 6 * column),
        "4096: window 128": (128, 6, 12 * 128 * 6 * column),
        "131072: global": (131072, 2, 12 * 131072 * 2 * column),
        "131072: window 128": (128, 2, 12 * 128 * 2 * column),
    }
    assert {row.count for row in found.values()} == {12}


def test_weights_by_group():
    """GPT-OSS 20B on four devices: experts, heads and vocabulary are cut, in 2 bytes each."""
    rows = footprint.shares(planned(GPT_OSS_20B, "1x4096", mesh="4"))
    found = {row.group: row.bytes for row in rows if row.kind == "weights"}
    d, heads, kv, width = 2880, 64 * 64, 8 * 64, 2880
    attention = 2 * heads * d + 2 * kv * d + heads + 2 * kv + 64
    expert = 3 * width * d + 2 * width + d
    per_layer = 32 * expert // 4 + 32 * (d + 1)
    assert found == {
        "embedding": 201088 * d * 2 // 4,
        "attention": 24 * (attention // 4 + d) * 2,
        "experts": 24 * per_layer * 2,
        "norms": (24 * 2 + 1) * d * 2,
        "head": 201088 * d * 2 // 4,
    }


@pytest.mark.parametrize("slots", ["8x4096", "2x1000,6x4096"])
def test_the_sum_is_that_of_the_sharding_report_and_the_state(slots):
    plan = planned(GEMMA_3_4B, slots, mesh="2x4")
    rows = footprint.shares(plan)
    state = [row for row in rows if row.kind == "state"]
    vocab = plan.config.vocab
    small = 3 * 4 + 1 + 10 * 4 + 2 + MAX_STOP_IDS * 4 + 4
    assert {row.group: row.bytes for row in state} == {
        "of slots": 8 * small,
        "counts": 8 * vocab * 4,
        "tables": 8 * (-(-vocab // 32) * 4 + MAX_LOGIT_BIAS * 8),
    }
    placed = sum(row.bytes_per_device for row in plan.placements())
    assert sum(row.bytes for row in rows) == placed + sum(row.bytes for row in state)


def test_placements_tell_rings_of_different_lengths_apart():
    rows = planned(GEMMA_3_4B, "2x2048,6x4096").placements()
    found = {row.name: (row.count, row.shape[2]) for row in rows if row.name.endswith(".keys")}
    assert found == {
        "layers.*.ring_2048.keys": (5, 2048),
        "layers.*.ring_2048_window_1024.keys": (29, 1024),
        "layers.*.ring_4096.keys": (5, 4096),
        "layers.*.ring_4096_window_1024.keys": (29, 1024),
    }


def test_scratch_is_that_of_the_most_demanding_program():
    """What a program returns in place of an argument is no memory of its own."""
    programs = [entry("prefill_64", 500, 900, 880), entry("decode", 200, 1300, 880)]
    last = footprint.shares(planned(GEMMA_3_4B, "1x4096"), programs)[-1]
    assert last == Share("scratch", "decode", 1, 200 + 1300 - 880)


def test_an_encoder_has_no_rings():
    config = EncoderConfig("bert", 50, 12, 16, 2, 3, 32)
    rows = footprint.shares(encoder_plan_of(config, Pooling()))
    assert [row.group for row in rows] == ["embedding", "attention", "mlp", "norms"]
    assert rows[0] == Share("weights", "embedding", 3, (50 + 32 + 2) * 12 * 4)


def test_the_table_ends_with_the_sum():
    lines = footprint.table([Share("rings", "global", 5, 2_500_000, 128, 8)] * 2)
    assert lines[0] == ("memory", "group", "count", "columns", "slots", "MB/device")
    assert lines[1] == ("rings", "global", "5", "128", "8", "2.50")
    assert lines[-1] == ("total", "", "", "", "", "5.00")
    assert "5.00" in footprint.render([Share("rings", "global", 5, 5_000_000, 128, 8)])
