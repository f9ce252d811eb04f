"""What a machine's files show of accelerators, on made-up machines."""

import pytest

from tpuinfer.sharding.accelerators import any_sign, gpu_files, pci_tpus, tpu_files


@pytest.fixture
def machine(tmp_path):
    """Makes files, and cards of (vendor, class), under a root."""

    def make(*files, cards=()):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for index, (vendor, kind) in enumerate(cards):
            card = tmp_path / f"sys/bus/pci/devices/0000:00:0{index}.0"
            card.mkdir(parents=True)
            (card / "vendor").write_text(f"{vendor}\n")
            (card / "class").write_text(f"{kind}\n")
        return tmp_path

    return make


def test_a_machine_with_nothing_shows_nothing(machine):
    root = machine("dev/null", "dev/nvram", cards=[("0x8086", "0x120000")])
    assert not any_sign(root)


@pytest.mark.parametrize("name", ["dev/accel0", "dev/vfio/0", "dev/vfio/vfio"])
def test_a_tpu_shows_as_a_file(machine, name):
    root = machine(name)
    assert tpu_files(root) == (root / name,)
    assert gpu_files(root) == ()
    assert any_sign(root)


@pytest.mark.parametrize("name", ["dev/nvidia0", "dev/nvidiactl", "dev/kfd", "dev/dxg"])
def test_a_gpu_shows_as_a_file(machine, name):
    root = machine(name)
    assert gpu_files(root) == (root / name,)
    assert tpu_files(root) == ()
    assert any_sign(root)


def test_a_tpu_shows_on_the_bus_and_a_network_card_is_none(machine):
    cards = [("0x1ae0", "0x020000"), ("0x1ae0", "0x010802"), ("0x1ae0", "0x120000")]
    root = machine(cards=cards)
    assert pci_tpus(root) == 1
    assert any_sign(root)


def test_a_card_that_cannot_be_read_is_no_tpu(tmp_path):
    (tmp_path / "sys/bus/pci/devices/0000:00:01.0").mkdir(parents=True)
    assert pci_tpus(tmp_path) == 0
