"""Energy counters, on folders and a driver by hand."""

from typing import ClassVar

import pytest

from tpuinfer.offline.power import Energy, nvml, rapl


def package(root, name, used, most=1_000_000_000, kind="package-0"):
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{kind}\n", "ascii")
    (folder / "max_energy_range_uj").write_text(f"{most}\n", "ascii")
    (folder / "energy_uj").write_text(f"{used}\n", "ascii")
    return folder / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not(tmp_path):
    first = package(tmp_path, "intel-rapl:0", 5_000_000)
    second = package(tmp_path, "intel-rapl:1", 0, kind="package-1")
    package(tmp_path, "intel-rapl:0:0", 0, kind="core")
    package(tmp_path, "intel-rapl:2", 0, kind="psys")
    package(tmp_path, "intel-rapl-mmio:0", 0)
    counters = rapl(tmp_path)
    assert [counter.name for counter in counters] == ["cpu", "cpu"]
    energy = Energy(counters)
    assert energy.joules == 0
    first.write_text("8000000", "ascii")
    second.write_text("500000", "ascii")
    assert energy.joules == 3.5


def test_a_counter_that_starts_again_goes_on(tmp_path):
    file = package(tmp_path, "intel-rapl:0", 9_000_000, most=10_000_000)
    energy = Energy(rapl(tmp_path))
    for used, joules in ((9_500_000, 0.5), (500_000, 1.5), (2_000_000, 3.0), (0, 11.0)):
        file.write_text(str(used), "ascii")
        assert energy.joules == pytest.approx(joules)


def test_what_cannot_be_read_is_absent(tmp_path):
    assert rapl(tmp_path / "none") == []
    package(tmp_path, "intel-rapl:0", 0).unlink()
    package(tmp_path, "intel-rapl:1", "no number")
    assert rapl(tmp_path) == []
    assert Energy([]).joules is None


def test_a_counter_that_fails_later_takes_the_sum_with_it(tmp_path):
    file = package(tmp_path, "intel-rapl:0", 0)
    package(tmp_path, "intel-rapl:1", 0)
    energy = Energy(rapl(tmp_path))
    assert energy.joules == 0
    file.unlink()
    assert energy.joules is None
    assert energy.joules is None


class NVMLError(Exception):
    """As the driver's library has it."""


class Driver:
    """Three GPUs; the second counts nothing."""

    NVMLError: ClassVar = NVMLError

    def __init__(self):
        self.used = {"gpu0": 1_000, "gpu1": None, "gpu2": 5_000}

    def nvmlInit(self):  # noqa: N802
        return None

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index > 2:
            raise NVMLError("no such device")
        return f"gpu{index}"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return uuid.removeprefix("GPU-")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if self.used[handle] is None:
            raise NVMLError("not supported")
        return self.used[handle]


@pytest.mark.parametrize(
    ("visible", "joules"),
    [("0", 2.0), ("2,0", 8.0), ("GPU-gpu2", 6.0), ("1", None), ("", None)],
)
def test_gpus_that_the_process_may_use_are_summed(visible, joules):
    driver = Driver()
    energy = Energy(nvml(visible, driver))
    driver.used |= {"gpu0": 3_000, "gpu2": 11_000}
    assert energy.joules == joules


@pytest.mark.parametrize("visible", [None, "0,1", "0,7"])
def test_some_of_the_gpus_do_not_pass_for_all(visible):
    assert nvml(visible, Driver()) == []


def test_one_of_two_packages_does_not_pass_for_both(tmp_path):
    package(tmp_path, "intel-rapl:0", 0)
    package(tmp_path, "intel-rapl:1", 0).unlink()
    assert rapl(tmp_path) == []


def test_a_driver_that_is_not_there_is_absent():
    driver = Driver()

    def fails():
        raise NVMLError("no driver")

    driver.nvmlInit = fails
    assert nvml(None, driver) == []


def test_a_gpu_that_fails_later_is_absent():
    driver = Driver()
    energy = Energy(nvml("0", driver))
    driver.used["gpu0"] = None
    assert energy.joules is None
