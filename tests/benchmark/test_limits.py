"""Limits are measured; how they are put together is known."""

from types import SimpleNamespace

import jax
import pytest

from tpuinfer.benchmark import limits
from tpuinfer.sharding.mesh import build_mesh, parse_mesh


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", 0.01)
    monkeypatch.setattr(limits, "_READ_BYTES", {"cpu": 2**22})
    monkeypatch.setattr(limits, "_MATMUL", {"cpu": (16, 64, 64)})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rates_are_of_a_real_machine(dtype):
    device = jax.devices()[0]
    assert 1e7 < limits.read_bandwidth(device) < 1e13
    assert 1e6 < limits.matmul_rate(device, dtype) < 1e16


def test_simulated_devices_share_one_machine(monkeypatch):
    monkeypatch.setattr(limits, "read_bandwidth", lambda device: 10.0)
    monkeypatch.setattr(limits, "matmul_rate", lambda device, dtype: 100.0)
    made = limits.measure(build_mesh(parse_mesh("2x4")), "bfloat16")
    assert (made.bandwidth, made.matmul) == (10, 100)


def test_the_fastest_of_many_counts(monkeypatch):
    clock = iter([0.0, 0.5, 0.5, 0.5, 0.5, 0.7, 9.0])  # one call of 0.5 s, one of 0.2, the end
    monkeypatch.setattr(limits, "time", SimpleNamespace(perf_counter=lambda: next(clock)))

    class Ready:
        def block_until_ready(self):
            pass

    assert limits._fastest(Ready) == pytest.approx(0.2)
