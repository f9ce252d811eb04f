"""What needs no compiler of the room that has one."""

import pytest

from tests.planning.asked import ask
from tpuinfer.errors import MeshError
from tpuinfer.planning import compiled
from tpuinfer.planning.question import lay_out
from tpuinfer.sharding import described
from tpuinfer.sharding.mesh import parse_mesh
from tpuinfer.sharding.presets import PRESETS

HBM = "Used 17.20G of 15.75G hbm. Exceeded hbm capacity by 1.45G."
PROGRAM = "Program size (300.5M) exceeds available HBM (15.75G)"


@pytest.mark.parametrize(
    ("text", "needs"), [(HBM, int(17.2 * 2**30)), (PROGRAM, int(300.5 * 2**20))]
)
def test_what_the_compiler_refuses_says_how_much_it_needs(text, needs):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: Ran out of\n  memory in hbm. {text}")
    assert compiled._needs("decode", error) == needs


@pytest.mark.parametrize(
    "text", ["INTERNAL: Mosaic failed", f"INTERNAL: {HBM}", "RESOURCE_EXHAUSTED"]
)
def test_another_failure_of_the_compiler_is_an_error(text):
    with pytest.raises(MeshError, match=r"the TPU compiler fails on decode: ") as raised:
        compiled._needs("decode", RuntimeError(text))
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("slots", "names"),
    [
        ("64x2048", ["decode", "prefill_1x512", "prefill_8x256"]),
        ("1x2048", ["decode", "prefill_1x512"]),
        ("64x128", ["decode", "prefill_1x128", "prefill_8x128"]),
    ],
)
def test_a_plan_is_judged_by_decode_a_chunk_and_the_largest_prefill(slots, names):
    assert compiled.shown(lay_out(ask(slots=slots))) == names


def test_rings_are_assumed_full():
    found = compiled.assumed(lay_out(ask(slots="8x4096", steps=3)))
    assert found == compiled.Assumed({"shard_map/while": 8, "jit(decode)/while": 3})


@pytest.mark.parametrize(("slots", "blocks"), [("8x4096", 1), ("8x32768", 8), ("8x5120", 2)])
def test_of_rings_cut_along_their_length_a_device_reads_its_own(slots, blocks):
    """Eighths of 4096, 32768 and 5120 columns in blocks of 512; of 5120 filled up to whole ones."""
    found = compiled.assumed(lay_out(ask(slots=slots, rules=PRESETS["context"])))
    assert found.trips["shard_map/while"] == blocks


def test_a_slice_that_the_compiler_sees_as_more_devices_is_one_line(monkeypatch):
    """A v4 chip: two devices to the compiler, one on a machine."""
    monkeypatch.setattr(described, "described_devices", lambda name: [None] * 8)
    with pytest.raises(MeshError, match=r"describes v4:2x2x1 as 8: .*; nearest: leave out") as told:
        lay_out(ask(topology="v4:2x2x1", mesh="4"), described=True)
    assert "\n" not in str(told.value)


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(described, "has_compiler", lambda: False)
    with pytest.raises(MeshError, match=r"pip install 'tpuinfer\[tpu\]'"):
        described.described_mesh("v5e:2x4", parse_mesh("8"))
