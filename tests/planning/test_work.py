"""Against counts by hand, for the smallest model: of its two layers each has 18,432 weights."""

import dataclasses

import pytest

from tests.planning.asked import ask
from tpuinfer.model_config import Experts
from tpuinfer.planning import work
from tpuinfer.planning.question import lay_out
from tpuinfer.planning.traffic import Collective
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing.tiny import TINY

LAYERS = 2 * (16 * 8 * 32 * 2 + 8 * 8 * 32 * 2 + 3 * 64 * 32)
HEAD, NORMS = 128 * 32, 5 * 32


def plan(mesh="8", slots="16x1024", **changed):
    config = dataclasses.replace(TINY, **changed.pop("config", {}))
    return lay_out(dataclasses.replace(ask(mesh=mesh, slots=slots, **changed), config=config))


def test_a_decode_step_reads_weights_once_and_every_ring_whole():
    found = work.decode(plan())
    assert found.weight_bytes == 2 * ((LAYERS + HEAD) // 8 + NORMS)
    assert found.ring_bytes == 2 * 2 * 16 * 1 * 1024 * 8 * 2  # layers, k and v, slots, heads, ...
    rows, new = 16 * 32 * 2, 2 * 2 * 16 * 1 * 8 * 2
    assert found.other_bytes == rows + new


def test_its_matmuls_and_attention_are_two_operations_a_weight_and_key():
    found = work.decode(plan())
    matmuls = 2 * 16 * (LAYERS + HEAD) / 8
    attention = 4 * 16 * 2 * 1024 * (16 / 8) * 8  # slots, layers, keys, heads, head_dim
    assert found.flops == {"bf16": matmuls + attention}
    assert found.needed_flops == found.flops["bf16"]


def test_data_shards_split_slots_and_read_the_weights_each():
    found, whole = work.decode(plan("2x4")), work.decode(plan("8"))
    assert found.weight_bytes == 2 * ((LAYERS + HEAD) // 4 + NORMS)
    assert found.ring_bytes == whole.ring_bytes  # half the slots, twice the heads
    assert found.flops == whole.flops
    kinds = found.collectives
    assert (
        kinds["all-gather"].nbytes == whole.collectives["all-gather"].nbytes // 4
    )  # ... and pieces


def test_two_sums_a_layer_and_one_for_the_embedding():
    payload = 16 * 2048 * 2  # 32 columns take a whole piece of 256 on each of 8 devices
    assert work.decode(plan()).collectives == {
        "reduce-scatter": Collective(5, 5 * payload),
        "all-gather": Collective(5, 5 * payload),
    }
    assert work.decode(plan("8x1")).collectives == {}


def test_a_prefill_reads_the_rings_of_its_rows_alone():
    found = work.prefill(plan(), 4, 256)
    assert found.ring_bytes == 4 * 2 * 2 * 1024 * 8 * 2
    assert found.flops["bf16"] == 2 * (1024 * LAYERS + 4 * HEAD) / 8 + 4 * 1024 * 2 * 1024 * 2 * 8
    assert found.other_bytes == 1024 * 32 * 2 + 2 * 2 * 1024 * 8 * 2


def test_a_window_bounds_what_is_kept_and_seen():
    local = plan(config={"windows": (512, 0)})
    found = work.decode(local)
    assert found.ring_bytes == 2 * 16 * 8 * 2 * (512 + 1024)
    whole = work.decode(plan())
    assert whole.flops["bf16"] - found.flops["bf16"] == 4 * 16 * 512 * 2 * 8


def test_quantised_weights_and_rings_count_their_scales():
    found = work.decode(plan(weights="int8", ring="int8"))
    outs = 2 * (128 + 64 + 64 + 32 + 64 + 64 + 32)  # of all maps
    whole = 2 * (32 + 32)  # outputs that are not cut: of o_proj and down_proj
    scales = 4 * ((outs - whole + 128) // 8 + whole)
    assert found.weight_bytes == (LAYERS + HEAD) // 8 + 2 * NORMS + scales
    assert found.ring_bytes == 2 * 2 * 16 * 1024 * (8 + 4)
    assert found.other_bytes == 16 * (32 + 4) + 2 * 2 * 16 * 8  # codes of the embedding, a scale
    assert set(found.flops) == {"bf16"}
    assert set(work.decode(plan(weights="w8a8")).flops) == {"bf16", "int8"}


def test_a_mixture_multiplies_more_than_it_needs_and_sums_once_a_layer():
    moe = plan(config={"family": "mixtral", "experts": Experts(8, 2, 64)})
    found = work.decode(moe)
    experts = 2 * 16 * 2 * 8 * 3 * 64 * 32 / 8
    assert found.flops["bf16"] - found.needed_flops == pytest.approx(experts * 3 / 4)
    assert found.collectives["reduce-scatter"].count == 5


def test_classes_of_slots_attend_to_their_own_length():
    short, both = plan(slots="8x512"), plan(slots="8x512,8x1024")
    found = work.decode(both).flops["bf16"] - 2 * work.decode(short).flops["bf16"]
    assert found == 4 * 8 * 2 * 512 * (16 / 8) * 8  # the longer ones' further keys
    assert work.prefill(both, 1, 256).ring_bytes == 2 * 2 * 1024 * 8 * 2  # of the longest class


def test_rules_with_exact_sums_gather_from_all_devices():
    exact = plan(rules=ShardingRules(reduce="exact"))
    assert work.decode(exact).collectives == {"all-gather": Collective(5, 5 * 16 * 2048 * 2 * 8)}


def test_float32_activations_take_twice():
    wide, usual = (work.decode(plan(dtype=dtype)) for dtype in ("float32", "bfloat16"))
    for kind, one in usual.collectives.items():
        assert wide.collectives[kind].nbytes == 2 * one.nbytes


def test_one_table_of_weights_serves_all_programs():
    one = plan()
    of = work.table(one)
    assert work.decode(one, of) == work.decode(one)
    assert work.prefill(one, 4, 256, of) == work.prefill(one, 4, 256)
