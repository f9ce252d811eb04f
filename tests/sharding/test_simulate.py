"""What must happen before any backend exists, each in a process of its own."""

import os
import subprocess
import sys

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
