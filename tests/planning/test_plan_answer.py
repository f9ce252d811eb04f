import dataclasses
import json

import pytest

from tests.planning.asked import ask
from tpuinfer.errors import MeshError, OutOfMemory
from tpuinfer.planning import as_json, as_text, compare, remedies
from tpuinfer.planning import topology as slices
from tpuinfer.planning.answer import Answer, answer
from tpuinfer.planning.compiled import Measured
from tpuinfer.planning.memory import capacity
from tpuinfer.planning.traffic import Collective
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
    parts = hbm.weights + hbm.rings + hbm.state + hbm.temporaries + hbm.code + hbm.headroom
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
    assert not answer(ask(slots=f"{fewer.slots.slots + 8}x4096")).fits
    assert shorter.slots.slots == 256
    assert not answer(ask(slots=f"256x{shorter.context + 512}")).fits


def test_another_mesh_is_the_first_remedy():
    """Replicated over data, the weights of 8B do not fit a v5e; cut they do."""
    would = remedies.remedies(ask(mesh="8x1"))
    assert would[0].flags == "--mesh 8"


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
    assert found.hbm.headroom < 0.1 * capacity(found.question.topology)
    with pytest.raises(OutOfMemory, match=r"no slot fits: weights take 17\.6"):
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


def test_a_mesh_that_cannot_be_stands_last_with_its_reason():
    rows = compare.compare(ask(slots="12x2048"), [slices.parse("v5e:2x4")])
    assert rows[-1].answer is None
    assert "slots is 12, which data=8 does not divide" in rows[-1].why
    assert as_json.comparison(rows)["ranking"][-1]["why"] == rows[-1].why


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
