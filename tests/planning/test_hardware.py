"""The table of chips: names find them, and its figures hang together."""

import pytest

from tpuinfer.errors import MeshError
from tpuinfer.planning import hardware
from tpuinfer.planning.hardware import CHIPS, by_device_kind, find

TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


@pytest.mark.parametrize("name", CHIPS)
def test_a_chip_is_found_by_its_name_and_by_its_kinds(name):
    chip = find(f" {name.upper()}")
    assert chip.name == name
    assert chip.device_kinds
    assert all(by_device_kind(kind) is chip for kind in chip.device_kinds)


def test_an_unknown_name_gets_the_nearest_and_all():
    with pytest.raises(MeshError, match=r"chip is 'v5-e': one of v4, v5e, .*, l4; nearest: v5e$"):
        find("v5-e")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_jax_and_the_table_mean_the_same_chip(kind, name):
    found = by_device_kind(kind)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA H200 MIG 1g.18gb", "TPU v3"])
def test_a_chip_with_other_numbers_is_not_taken_for_one_of_the_table(kind):
    assert by_device_kind(kind) is None


def test_no_kind_is_of_two_chips():
    kinds = [kind for chip in CHIPS.values() for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_figures_are_in_bytes_a_second_and_operations_a_second(chip):
    """A factor of 8 or 1000 too much or too little breaks one of these."""
    assert 0.93 * chip.hbm_bytes < chip.hbm_usable_bytes < 1.01 * chip.hbm_bytes
    assert 100 < chip.flops.bf16 / chip.hbm_bandwidth < 650  # rows that a bf16 matmul needs
    assert 0.05 < chip.ici_bandwidth / chip.hbm_bandwidth < 0.3
    for other in (chip.flops.int8, chip.flops.fp8):
        assert other is None or 1 <= round(other / chip.flops.bf16, 2) <= 2.01


@pytest.mark.parametrize("name", TPUS)
def test_a_tpu_has_two_links_a_dimension(name):
    chip = find(name)
    assert chip.torus in (2, 3)
    assert chip.ici_links == 2 * chip.torus
    assert chip.ici_bandwidth / chip.ici_links in (50e9, 100e9)


@pytest.mark.parametrize(
    ("name", "gib"),
    [("v4", 30.5), ("v5e", 15.75), ("v5p", 95.74), ("v6e", 31.25), ("tpu7x", 189.5)],
)
def test_usable_memory_is_what_the_compiler_says(name, gib):
    assert round(find(name).hbm_usable_bytes / 2**30, 2) == gib


def test_only_chips_of_two_chiplets_show_as_two_devices():
    assert [chip.name for chip in CHIPS.values() if chip.devices_per_chip != 1] == ["tpu7x"]


def test_the_table_needs_no_jax():
    assert "jax" not in vars(hardware)
