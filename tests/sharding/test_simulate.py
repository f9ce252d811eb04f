"""What must happen before any backend exists, each in a process of its own."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from tpuinfer.sharding.accelerators import any_sign
from tpuinfer.sharding.simulate import settle_platform

LIBTPU = importlib.util.find_spec("libtpu") is not None

FRESH = """
import os
from tpuinfer.sharding.simulate import prepare_cpu_devices
prepare_cpu_devices(1)
print("NPROC" in os.environ)
prepare_cpu_devices(8)
prepare_cpu_devices(4)
import jax
print(jax.device_count(), os.environ["NPROC"])
"""

BUILT = """
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
print(build_mesh(parse_mesh("2x4")).devices.shape)
"""

TOO_LATE = """
import os
import jax
jax.devices()
from tpuinfer.errors import MeshError
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
try:
    build_mesh(parse_mesh("2x4"))
except MeshError as error:
    print(error)
print(jax.device_count(), "NPROC" in os.environ)
"""


def run(program: str, **more: str) -> list[str]:
    """The lines that a program prints in a fresh process on the CPU."""
    without = ("NPROC", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "JAX_PLATFORMS": "cpu", **more},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_fresh_process_gets_devices_and_threads_for_them():
    assert run(FRESH) == ["False", "8 32"]


def test_threads_that_suffice_already_are_left_alone():
    assert run(FRESH, NPROC="64") == ["True", "8 64"]


def test_a_mesh_simulates_what_it_needs():
    assert run(BUILT) == ["(2, 4)"]


def test_too_late_is_said_with_what_to_do():
    assert run(TOO_LATE) == [
        "mesh data=2,model=4 needs 8 devices, 1 cpu found: the CPU backend was started before the "
        "mesh was known; build the mesh first",
        "1 False",
    ]


MESH = """
import os
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
print(len(build_mesh(parse_mesh("2x4")).devices.flat), os.environ["JAX_PLATFORMS"])
"""

DOOR = """
import os
import jax
from tpuinfer import flags
flags.run(lambda: print(8 * jax.device_count(), os.environ["JAX_PLATFORMS"]))
"""


@pytest.mark.skipif(any_sign(), reason="this machine may have an accelerator")
@pytest.mark.skipif(not LIBTPU, reason="needs libtpu")
@pytest.mark.parametrize("program", [MESH, DOOR], ids=["mesh", "door"])
def test_libtpu_says_nothing_where_there_is_no_tpu(program):
    without = ("NPROC", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    keep = {
        name: value
        for name, value in os.environ.items()
        if name not in without and not name.startswith("TPU_")
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=keep, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "8 cpu\n"


class Jax:
    """Stands in for jax in sys.modules: what was set."""

    def __init__(self, platforms=None):
        self.config = self
        self.jax_platforms = platforms

    def update(self, name, value):
        setattr(self, name, value)


@pytest.fixture
def process(monkeypatch):
    """A process that has chosen nothing, with libtpu, and the jax that it imported."""
    for name in [*os.environ]:
        if name.startswith(("TPU_", "JAX_")):
            monkeypatch.delenv(name)
    jax = Jax()
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setenv("TPU_LIBRARY_PATH", "x")  # as importing jax leaves it
    monkeypatch.setenv("JAX_PLATFORMS", "")  # gives it back after the test
    monkeypatch.delenv("JAX_PLATFORMS")
    return jax


def test_the_cpu_is_chosen_where_nothing_else_can_be(process, tmp_path):
    assert settle_platform(tmp_path)
    assert process.jax_platforms == os.environ["JAX_PLATFORMS"] == "cpu"


def test_before_jax_is_imported_the_variable_is_enough(process, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    assert settle_platform(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert "jax" not in sys.modules


@pytest.mark.parametrize(
    "name", ["JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID"]
)
def test_a_variable_that_says_the_platform_is_left_alone(process, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "tpu")
    assert not settle_platform(tmp_path)
    assert process.jax_platforms is None


@pytest.mark.parametrize("name", ["accel0", "vfio/0", "nvidia0"])
def test_what_may_be_an_accelerator_is_not_hidden(process, tmp_path, name):
    (tmp_path / "dev" / name).parent.mkdir(parents=True)
    (tmp_path / "dev" / name).touch()
    assert not settle_platform(tmp_path)
    assert process.jax_platforms is None
    assert "JAX_PLATFORMS" not in os.environ


def test_another_plugin_may_have_devices(process, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: (group,))
    assert not settle_platform(tmp_path)


def test_without_libtpu_there_is_nothing_to_silence(process, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not settle_platform(tmp_path)


def test_a_platform_that_a_program_chose_is_left_alone(process, tmp_path):
    process.jax_platforms = "tpu"
    assert not settle_platform(tmp_path)
    assert process.jax_platforms == "tpu"
