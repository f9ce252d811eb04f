"""Checks of the devices that jax found, or did not."""

import dataclasses

import pytest
from machines import CPU, GIB, chips, laptop, lines, tpu_vm

from tpuinfer.diagnosis.devices import found, memory, topology
from tpuinfer.diagnosis.facts import Device, Gpu, Probed
from tpuinfer.diagnosis.findings import Level


def failed(error, **changes):
    return laptop(probed=Probed(error=error), **changes)


def test_a_healthy_tpu_is_described():
    assert lines(found, tpu_vm()) == [
        "devices: 8 x TPU v5e ('TPU v5 lite' to jax), after 9.5 s; ",
    ]
    assert lines(topology, tpu_vm()) == [
        "topology: 2x4, 8 chips; ",
        "mesh: --mesh 1x8, 2x4, 4x2, 8x1 use all 8 devices; ",
    ]
    assert lines(memory, tpu_vm()) == ["memory: 15.75 GiB a device, 0 B in use; "]


def test_a_laptop_is_described():
    assert lines(found, laptop()) == ["devices: 1 x cpu, after 1.0 s; "]
    (line,) = lines(topology, laptop())
    assert "simulated" in line
    assert lines(memory, laptop()) == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("Run sudo rm /tmp/libtpu_lockfile", "stop the process that holds it"),
        ("The TPU is already in use by process with pid 7", "stop the process that holds it"),
        ("ModuleNotFoundError: No module named 'jax'", "repair the packages"),
        ("Unable to initialize backend 'tpu': No jellyfish device found", "is there a TPU?"),
        ("Unable to initialize backend 'cuda': x", "does nvidia-smi work?"),
        ("Backend 'x' is not in the list of known backends: ['cpu', 'tpu']", "unset JAX_PLATFORMS"),
        ("Unknown flag in XLA_FLAGS: --x", "unset XLA_FLAGS"),
        ("Permission denied: /dev/vfio/0", "let this user open"),
        ("something new", "read what it says"),
    ],
)
def test_a_backend_that_fails_is_one_line_with_a_remedy(error, remedy):
    (line,) = lines(found, failed(error), Level.FAIL)
    assert line.startswith(f"devices: {error}; ")
    assert remedy in line
    assert lines(topology, failed(error)) == lines(memory, failed(error)) == []


def test_what_was_asked_for_is_said_too():
    (line,) = lines(found, failed("AssertionError:", environ={"JAX_PLATFORMS": "cuda"}))
    assert line.startswith("devices: JAX_PLATFORMS is cuda: AssertionError:; does nvidia-smi work?")


def test_a_backend_that_hangs_is_a_failure():
    probed = Probed(error="jax did not answer in 120 s", timed_out=True)
    (line,) = lines(found, tpu_vm(probed=probed), Level.FAIL)
    assert "did not answer in 120 s" in line
    assert "on all of them at once" in line


def test_a_tpu_that_jax_does_not_find_is_a_failure():
    (line,) = lines(found, tpu_vm(probed=CPU), Level.FAIL)
    assert "a TPU (/dev/vfio/0), and jax found none" in line
    hidden = tpu_vm(probed=CPU, environ={"JAX_PLATFORMS": "cpu"})
    assert lines(found, hidden, Level.FAIL) == []


def test_a_file_of_vfio_alone_is_no_tpu():
    facts = laptop(tpu_files=("/dev/vfio/0",))
    assert lines(found, facts, Level.FAIL) == []
    assert lines(found, laptop(tpu_files=("/dev/accel0",)), Level.FAIL)
    named = laptop(tpu_files=("/dev/vfio/0",), environ={"TPU_WORKER_ID": "0"})
    assert lines(found, named, Level.FAIL)


def test_several_hosts_are_said():
    probed = dataclasses.replace(chips(), processes=4)
    (line,) = lines(found, tpu_vm(probed=probed))
    assert "4 processes" in line


def test_chips_with_a_gap_are_a_warning():
    devices = tuple(one for one in chips().devices if one.coords != (1, 3, 0))
    (line,) = lines(topology, tpu_vm(probed=Probed(devices)), Level.WARN)
    assert "7 chips lie in a box of 2x4, which has 8" in line


def test_a_slice_may_begin_anywhere_on_the_torus():
    devices = tuple(Device(i, "tpu", "TPU v5 lite", coords=(4 + i % 2, 6, 0)) for i in range(2))
    assert lines(topology, tpu_vm(probed=Probed(devices)))[0] == "topology: 2x1, 2 chips; "


def test_two_devices_on_one_chip_are_one_place():
    pairs = tuple(Device(i, "tpu", "TPU7x", coords=(i // 2, 0, 0)) for i in range(4))
    assert lines(topology, tpu_vm(probed=Probed(pairs)))[0] == "topology: 2x1x1, 2 chips; "


def test_memory_that_something_holds_is_a_warning():
    (line,) = lines(memory, tpu_vm(probed=chips(used=4 * GIB)), Level.WARN)
    assert "15.75 GiB a device, and 4 GiB of device 0 are in use already" in line


def test_less_memory_than_the_chip_gives_is_a_warning():
    (line,) = lines(memory, tpu_vm(probed=chips(limit=10 * GIB)), Level.WARN)
    assert "10 GiB a device, a TPU v5e gives 15.75 GiB" in line


def test_a_gpu_that_others_use_is_a_warning():
    gpus = (Gpu("NVIDIA H200", 140 * GIB, 70 * GIB), Gpu("NVIDIA H200", 140 * GIB, GIB))
    (line,) = lines(memory, laptop(gpus=gpus), Level.WARN)
    assert "70 GiB of 140 GiB of NVIDIA H200" in line
