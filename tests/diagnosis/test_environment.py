"""Checks of variables, on machines where they are wrong."""

import pytest
from machines import laptop, lines, tpu_vm

from tpuinfer.diagnosis.environment import check
from tpuinfer.diagnosis.findings import Level

HOST = tuple(f"/dev/accel{index}" for index in range(4))


def test_no_variable_is_no_trouble():
    (line,) = lines(check, tpu_vm(), Level.OK)
    assert "no variable" in line


def test_a_tpu_that_is_hidden_is_a_warning():
    (line,) = lines(check, tpu_vm(environ={"JAX_PLATFORMS": "cpu"}), Level.WARN)
    assert "JAX_PLATFORMS is cpu, which hides this machine's TPU; unset JAX_PLATFORMS" in line
    for value in ("tpu", "tpu,cpu", ""):
        assert lines(check, tpu_vm(environ={"JAX_PLATFORMS": value}), Level.WARN) == []


def test_a_gpu_that_is_hidden_is_a_warning():
    box = {"gpu_files": ("/dev/nvidia0",)}
    (line,) = lines(check, laptop(environ={"JAX_PLATFORMS": "cpu"}, **box), Level.WARN)
    assert "GPU" in line
    assert lines(check, laptop(environ={"JAX_PLATFORMS": "cuda,cpu"}, **box), Level.WARN) == []


def test_the_cpu_on_a_laptop_is_what_it_has():
    assert lines(check, laptop(environ={"JAX_PLATFORMS": "cpu"})) == [
        "environment: JAX_PLATFORMS is cpu; "
    ]


@pytest.mark.parametrize("name", ["LIBTPU_INIT_ARGS", "XLA_FLAGS"])
def test_flags_of_compilers_are_a_warning(name):
    (line,) = lines(check, tpu_vm(environ={name: "--xla_y=1"}), Level.WARN)
    assert f"{name} is '--xla_y=1'" in line
    assert lines(check, tpu_vm(environ={name: " "}), Level.WARN) == []


def test_threads_are_said_and_a_wrong_number_fails():
    assert "NPROC is 32" in lines(check, laptop(environ={"NPROC": "32"}), Level.OK)[0]
    for value in ("0", "many", ""):
        (line,) = lines(check, laptop(environ={"NPROC": value}), Level.FAIL)
        assert f"NPROC is {value!r}" in line


@pytest.mark.parametrize(
    ("environ", "level", "said"),
    [
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}, Level.OK, "worker 1 of 2"),
        ({"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b"}, Level.FAIL, "from 0 to 1"),
        ({"TPU_WORKER_ID": "x", "TPU_WORKER_HOSTNAMES": "a"}, Level.FAIL, "is 'x'"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Level.FAIL, "TPU_WORKER_ID is not set"),
        ({"TPU_ACCELERATOR_TYPE": "v5litepod-16"}, Level.WARN, "16 chips and this host 4"),
        ({"TPU_ACCELERATOR_TYPE": "v5p-16"}, Level.WARN, "8 chips and this host 4"),
        ({"TPU_TOPOLOGY": "4x4"}, Level.WARN, "16 chips and this host 4"),
    ],
)
def test_several_hosts_must_know_who_they_are(environ, level, said):
    facts = laptop(tpu_files=HOST, environ=environ)
    (line,) = [one for one in lines(check, facts, level) if one.startswith("workers")]
    assert said in line


@pytest.mark.parametrize(
    "environ",
    [
        {"TPU_ACCELERATOR_TYPE": "v5litepod-4"},
        {"TPU_ACCELERATOR_TYPE": "v4-8"},
        {"TPU_TOPOLOGY": "2x2"},
        {"TPU_ACCELERATOR_TYPE": "new-64"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_one_host_needs_no_names(environ):
    facts = laptop(tpu_files=HOST, environ=environ)
    assert [one for one in lines(check, facts) if one.startswith("workers")] == []
