"""What this machine can do: how fast it reads memory and multiplies matrices. Half a second each.

The best of many runs counts: a limit is what is possible, and noise only ever slows.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from tpuinfer.benchmark.bounds import Machine
from tpuinfer.ops import linear

_SECONDS = 0.4
_GROUP_SECONDS = 0.005
"""Short calls are timed in groups, so that what a dispatch costs does not count."""

_READ_BYTES = {"cpu": 2**28}
_READ_BYTES_ELSEWHERE = 2**30
_MATMUL = {"cpu": (512, 2048, 8192)}
_MATMUL_ELSEWHERE = (8192, 8192, 8192)


def measure(mesh: Mesh | AbstractMesh, dtype: str) -> Machine:
    """Limits of all devices of a mesh: one is measured, and the others are taken to be like it.

    Devices that a CPU simulates share its memory and cores: all of them can do what one can.
    """
    assert isinstance(mesh, Mesh), "a mesh without devices: nothing can be measured"
    device = mesh.devices.flat[0]
    count = 1 if device.platform == "cpu" else mesh.size
    return Machine(count * read_bandwidth(device), count * matmul_rate(device, dtype))


def read_bandwidth(device: jax.Device) -> float:
    """Bytes per second of summing an array that no cache holds."""
    size = _READ_BYTES.get(device.platform, _READ_BYTES_ELSEWHERE)
    array = jax.device_put(jnp.ones(size // 4, jnp.float32), device)
    total = jax.jit(jnp.sum)
    return size / _fastest(lambda: total(array))


def matmul_rate(device: jax.Device, dtype: str) -> float:
    """FLOP per second of one large product, in the form that the models use."""
    rows, inner, outer = _MATMUL.get(device.platform, _MATMUL_ELSEWHERE)
    x, weight = (
        jax.device_put(jnp.ones((size, inner), jnp.dtype(dtype)), device) for size in (rows, outer)
    )
    product = jax.jit(lambda x, weight: linear.einsum("BD,FD->BF", x, weight))
    return 2 * rows * inner * outer / _fastest(lambda: product(x, weight))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of one call at its fastest."""
    call().block_until_ready()
    once = _timed(call, 1)
    group = max(1, math.ceil(_GROUP_SECONDS / once))
    best, end = once, time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        best = min(best, _timed(call, group))
    return best


def _timed(call: Callable[[], Any], times: int) -> float:
    """Seconds a call, of so many in a row."""
    start = time.perf_counter()
    results = [call() for _ in range(times)]
    results[-1].block_until_ready()
    return (time.perf_counter() - start) / times
