import dataclasses
import json

import pytest

from tests.planning.asked import ask
from tpuinfer.errors import MeshError, OutOfMemoryError
from tpuinfer.planning import answer as answers
from tpuinfer.planning import as_json, as_text, compare, memory, remedies
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.compiled import Measured
from tpuinfer.planning.memory import capacity
from tpuinfer.planning.question import lay_out
from tpuinfer.planning.traffic import Collective
from tpuinfer.sharding.presets import PRESETS
from tpuinfer.sharding.rules import ShardingRules

BIG = ask("llama-3.3-70b", slots="16x2048")
"""17.6 GB of weights on each chip of an 8-chip v5e, which has 16.9."""


@pytest.fixture(scope="module")
def small() -> Answer:
    return answer(ask())


def test_the_published_bound_of_a_decode_step(small):
    """jax-llm-examples' table: 4.02 GB a chip for 64 slots of 2048, 4.91 ms at 819 GB/s."""
    assert small.decode.work.bytes == pytest.approx(4.024e9, rel=1e-3)
    assert small.decode.bound.seconds == pytest.approx(4.91e-3, rel=2e-3)
    assert small.tokens_per_second == pytest.approx(64 / 4.91e-3, rel=2e-3)
    assert small.decode.bound.limit == "HBM"
    assert small.chunk.bound.limit == "FLOPs"


def test_memory_adds_up_to_the_capacity(small):
    hbm = small.hbm
    parts = hbm.weights + hbm.rings + hbm.state + hbm.temporaries + hbm.headroom
    assert parts == hbm.capacity == int(15.75 * 2**30)
    assert hbm.rings == 2 * 32 * 64 * 2048 * 128 * 2
    assert small.fits


def test_what_does_not_fit_says_so_and_what_would():
    found = answer(BIG)
    assert not found.fits
    assert found.hbm.headroom < -1e9
    would = remedies.remedies(BIG)
    flags = [one.flags for one in would]
    assert "--weights int8 --ring int8" in flags
    assert any(one.startswith("--topology v6e:") for one in flags)
    assert not any(one.startswith("--mesh") for one in flags)  # none of them cuts it further
    for one in would:
        assert one.answer.fits
    assert flags.index("--weights int8 --ring int8") < len(flags) - 1  # cheaper than other chips


def test_fewer_slots_and_shorter_ones_are_the_most_that_fit():
    found = [one for one in remedies.remedies(ask(slots="256x4096")) if "--slots" in one.flags]
    fewer, shorter = (one.answer.plan for one in found)
    assert fewer.context == 4096
    assert fewer.slots.slots % 8 == 0
    assert not answer(ask(slots=f"{fewer.slots.slots + 8}x4096")).hbm.has_room
    assert shorter.slots.slots == 256
    assert not answer(ask(slots=f"256x{shorter.context + 512}")).hbm.has_room


def test_each_class_of_slots_gets_fewer():
    asked = ask("llama-3.2-1b", "v5e:1x1", "1", slots="480x2048,80x16384")
    flags = [one.flags for one in remedies.remedies(asked)]
    assert "--slots 60x2048,10x16384" in flags
    assert not answer(ask("llama-3.2-1b", "v5e:1x1", "1", slots="120x2048,20x16384")).fits


def test_where_no_one_change_helps_several_together_do():
    flags = [one.flags for one in remedies.remedies(ask("llama-3.3-70b", slots="256x8192"))]
    assert flags[0].startswith("--weights int8 --ring int8 --slots ")
    assert flags[0].endswith("x8192")
    rules = ShardingRules(fallback={"kv_heads": "replicate"})
    asked = ask("llama-3.1-405b", slots="8x2048", rules=rules)
    flags = [one.flags for one in remedies.remedies(asked)]
    assert flags == ["--topology v5p:2x2x2 --mesh 8 --weights int8 --ring int8"]


def test_with_kv_heads_repeated_larger_slices_of_the_same_chip_help():
    """Cut over 128 chips with 8 KV heads kept 16 times each; whole on each it would not fit."""
    flags = [one.flags for one in remedies.remedies(ask("llama-3.1-405b", slots="8x2048"))]
    assert flags[0] == "--topology v5e:8x16 --mesh 128"


def test_remedies_say_what_other_chips_hold_and_how_many_more_there_are():
    why = {one.flags: one.why for one in remedies.remedies(ask("qwen3-8b", "v5e:1x1", "1", "8"))}
    assert why["--topology v5e:2x2 --mesh 4"] == "4 chips instead of 1"
    assert why["--topology v6e:1x1 --mesh 1"] == "1 x 34 GB instead of 1 x 17 GB"


def test_what_was_chosen_already_is_no_remedy():
    coded = ask("llama-3.3-70b", slots="256x8192", weights="int8", ring="int8")
    flags = [one.flags for one in remedies.remedies(coded)]
    assert flags[0].startswith("--slots ")
    assert not any("int8" in one for one in flags)


def test_the_least_of_weights_is_no_more_than_they_take():
    for weights in ("none", "int8", "int4"):
        asked = ask("gpt-oss-20b", weights=weights)
        plan = lay_out(asked)
        least = remedies._least(asked, plan, remedies._kinds(asked))
        taken = memory.estimate(plan, asked.topology).weights
        assert 0.7 * taken < least <= taken


def test_the_least_of_weights_that_are_gathered_is_what_is_kept():
    asked = ask(mesh="8x1", rules=PRESETS["fsdp"])
    least = remedies._least(asked, lay_out(asked), remedies._kinds(asked))
    assert least == pytest.approx(memory.estimate(lay_out(asked), asked.topology).weights, rel=0.01)


def test_another_mesh_is_the_first_remedy():
    """Replicated over data, the weights of 8B do not fit a v5e; cut they do."""
    would = remedies.remedies(ask(mesh="8x1"))
    assert would[0].flags == "--mesh 8"
    assert not any("--topology v5e:2x4" in one.flags for one in would)  # it is that slice


def test_fewer_of_each_class_are_whole_data_shards():
    asked = ask(mesh="2x4", slots="10x2048,3x8192")
    first, *_ = remedies._fewer_of_each(asked, 2, "")
    assert first.flags == "--slots 4x2048,2x8192"


def test_other_chips_hold_more_each_the_smallest_first():
    found = {
        name: [chip.name for chip in remedies._chips(slices.parse(name))] for name in ("v6e", "l4")
    }
    assert found == {"v6e": ["v6e", "v5p", "tpu7x"], "l4": ["l4", "h100", "a100-80gb", "h200"]}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mesh": "2x8"}, r"mesh 2x8 is of 16 devices, v5e:2x4 has 8; nearest: 8; legal: 8, 2x4"),
        ({"slots": "9x2048", "mesh": "2x4"}, r"slots is 9, which data=2 does not divide; nearest"),
    ],
)
def test_what_cannot_be_is_one_line(changed, says):
    with pytest.raises(MeshError, match=says):
        answer(ask(**changed))


def test_heads_that_cannot_be_split_are_an_error_where_the_rules_say_so():
    rules = ShardingRules(fallback={"kv_heads": "error"})
    with pytest.raises(MeshError, match=r"kv_heads is 8, which model=16 does not divide; nearest"):
        answer(ask(topology="v5e:4x4", mesh="16", rules=rules))


def test_auto_slots_fill_the_memory():
    found = answer(ask(slots="auto", context="auto"))
    assert found.fits
    spare = found.hbm.headroom - found.hbm.code
    assert 0 <= spare < 0.1 * capacity(found.question.topology)
    with pytest.raises(OutOfMemoryError, match=r"no slot fits: weights take 17\.6"):
        answer(dataclasses.replace(BIG, engine=ask(slots="auto").engine))


def test_a_comparison_ranks_what_fits_by_speed_a_chip_or_by_price():
    asked = ask(slots="64x2048")
    rows = compare.compare(asked, slices.several("v5e:2x4,v6e:2x4"))
    assert len(rows) == 8
    fits = [row.fits for row in rows]
    assert fits == sorted(fits, reverse=True)
    speeds = [row.answer.tokens_per_second / row.topology.chips for row in rows if row.fits]
    assert speeds == sorted(speeds, reverse=True)
    assert str(rows[0].topology) == "v6e:2x4"
    assert not next(
        row for row in rows if row.topology.chip.name == "v5e" and row.mesh.axes[0][1] == 8
    ).fits
    assert as_text.comparison(rows, 1.0).splitlines()[1].startswith("v6e:2x4")


def test_what_fits_comes_before_what_is_faster():
    rows = compare.compare(ask(slots="4x2048"), slices.several("v5e:1x1,l4:1"))
    assert [(str(row.topology), row.fits) for row in rows] == [("l4:1", True), ("v5e:1x1", False)]
    slow, fast = (row.answer.tokens_per_second for row in rows)
    assert fast > slow


def test_a_price_is_of_all_chips_of_a_slice():
    rows = compare.compare(ask(slots="64x2048"), slices.several("v5e:2x4,v5e:4x4"), 1.0)
    chips = [row.topology.chips for row in rows if row.fits]
    assert chips[0] == 8  # the larger one is faster, and dearer
    assert max(rows, key=lambda row: row.answer.tokens_per_second).topology.chips == 16


def test_a_mesh_that_cannot_be_stands_last_with_its_reason():
    rows = compare.compare(ask(slots="12x2048"), [slices.parse("v5e:2x4")])
    assert rows[-1].answer is None
    assert "slots is 12, which data=8 does not divide" in rows[-1].why
    assert as_json.comparison(rows)["ranking"][-1]["why"] == rows[-1].why
    rows = compare.compare(ask(slots="12x65536"), [slices.parse("v5e:2x4")])
    assert [row.answer is None for row in rows] == [False, False, False, True]
    assert not rows[-2].fits


def test_json_has_what_is_promised(small):
    found = json.loads(json.dumps(as_json.as_json(small, price=1.2)))
    assert found["version"] == 1
    assert {"weights", "rings", "temporaries", "headroom", "capacity"} <= set(found["hbm_per_chip"])
    decode = found["programs"]["decode"]
    assert decode["traffic_bytes"] is None
    assert decode["ideal_bytes"] == small.decode.work.bytes
    assert decode["collectives"]["reduce-scatter"]["count"] == 65
    assert found["bound_ms"]["decode"] == small.decode.bound.seconds * 1e3
    assert found["cost_per_million_tokens"] == pytest.approx(8 * 1.2 / 3600 / 13030 * 1e6, rel=1e-2)
    assert found["remedies"] == []
    assert found["estimated"] == ["temporaries", "code"]
    assert found["replicated"] == []
    assert decode["per_layer"]["ideal_bytes"] == decode["ideal_bytes"] / 32
    assert decode["per_layer"]["traffic_bytes"] is None
    assert decode["per_layer"]["collectives"]["all-gather"]["count"] == 65 / 32
    assert "prefill_1x512" in found["programs"]


def test_what_was_compiled_counts_instead_of_estimates(small):
    made = Measured(
        argument_bytes=small.hbm.weights + small.hbm.rings + small.hbm.state + 5,
        temp_bytes=100,
        traffic_bytes=small.decode.work.bytes * 2,
        collectives={"all-reduce": Collective(3, 7)},
    )
    programs = {
        name: dataclasses.replace(one, measured=made) for name, one in small.programs.items()
    }
    found = dataclasses.replace(small, programs=programs)
    decode = as_json.as_json(found)["programs"]["decode"]
    assert decode["traffic_ratio"] == 2
    assert decode["per_layer"]["traffic_bytes"] == decode["traffic_bytes"] / 32
    assert decode["collectives"] == {"all-reduce": {"count": 3, "bytes": 7}}
    assert "2.000" in as_text.as_text(found)


def test_what_the_compiler_refuses_does_not_fit(small):
    refused = dataclasses.replace(small.decode, measured=Measured(needs=20 * 10**9))
    found = dataclasses.replace(small, programs=dict(small.programs) | {"decode": refused})
    assert not found.fits
    text = as_text.as_text(found)
    assert "does NOT fit (the compiler needs 20.00 GB)" in text
    assert "refused" in text


def test_the_text_names_the_verdict_the_bound_and_the_largest(small):
    text = as_text.as_text(small, price=1.2)
    assert "slots 64x2048" in text.splitlines()[0]
    assert text.splitlines()[0].endswith(": fits")
    assert "Largest that fits: 256 slots of 2048, or 64 slots of " in text
    assert "a million generated tokens cost 0.20" in text
    assert "Temporaries and code are estimates; --compile" in text
    assert "Per layer of decode (32 layers): 125.8 MB ideal; reduce-scatter 2.03, 1.06 MB" in text
    assert "weights bfloat16, ring bfloat16" in text
    assert "Not cut" not in text
    gpu = as_text.as_text(answer(ask(topology="h100:1", mesh="1", weights="int8")))
    assert "made for TPUs" in gpu
    assert "--compile" not in gpu
    assert "(1 chip of NVIDIA" in gpu
    assert "weights int8 (else bfloat16)" in gpu


def test_what_the_mesh_does_not_divide_is_told():
    rules = ShardingRules(fallback={"kv_heads": "replicate"})
    found = answer(ask(topology="v5e:4x4", mesh="16", rules=rules))
    why = dict(found.replicated)
    assert why["kv_heads"] == "8 does not divide by model=16: replicated"
    assert set(why) == {"heads", "kv_heads"}
    assert f"kv_heads: {why['kv_heads']}" in as_text.as_text(found)
    assert as_json.as_json(found)["replicated"][1]["axis"] == "kv_heads"


def test_kv_heads_that_are_kept_several_times_are_told():
    found = answer(ask(topology="v5e:4x4", mesh="16"))
    assert found.plan.config.kv_heads == 16
    assert found.hbm.rings == answer(ask()).hbm.rings  # as on half the chips
    text = as_text.as_text(found)
    assert "KV heads: 8, each kept 2 times: 16 over model=16." in text.splitlines()
    assert "Not cut" not in text
    assert as_json.as_json(found)["repeats"] == 2


def test_compiled_temporaries_take_the_place_of_estimates(small, monkeypatch):
    """Of the most demanding program; where one is refused they stay as reckoned."""
    lying = small.hbm.weights + small.hbm.rings + small.hbm.state
    made = [Measured(argument_bytes=lying + 7, temp_bytes=size) for size in (100, 300)]
    refused = Measured(needs=9)
    for programs, temporaries in ((made, 307), ([*made, refused], small.hbm.temporaries)):
        names = list(small.programs)
        told = dict(zip(names, programs, strict=False))
        monkeypatch.setattr(answers, "lay_out", lambda question, described: small.plan)
        monkeypatch.setattr(answers.compiled, "compile_all", lambda plan, told=told, **_: told)
        found = answer(ask(), compile=True)
        assert found.hbm.temporaries == temporaries
        assert found.refused == (9 if refused in programs else 0)


def test_capacity_is_that_of_a_device_and_of_a_gpu_three_quarters():
    gpu, half = slices.parse("h100:8"), slices.parse("tpu7x-8")
    assert capacity(gpu) == int(0.75 * gpu.chip.hbm_usable_bytes)
    assert capacity(half) == half.chip.hbm_usable_bytes // 2
