"""Every test runs on 8 simulated CPU devices; rank promotion is an error, warnings are too.

`--platform gpu` (or tpu) runs on the machine's own devices instead: then the tests that need a
mesh need that many.
"""

import functools
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tpuinfer.sharding.simulate import prepare_cpu_devices

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 20_000
"""Pieces of memory from which compiled programs are forgotten: Linux gives a process 65,530, a
program of XLA:CPU takes some 200, and at the limit it crashes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--platform", default="cpu", help="the jax platform to test on")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network what it holds
    if config.getoption("--platform") == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # front doors: a libtpu without a TPU is loud
    jax.config.update("jax_platforms", config.getoption("--platform"))
    prepare_cpu_devices(8)
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs() -> Iterator[None]:
    """Between modules, forget the programs that tests keep, before they are too many."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        for kept in gc.get_objects():
            if type(kept) is functools._lru_cache_wrapper and _is_for_tests(kept.__wrapped__):
                kept.cache_clear()
        jax.clear_caches()
        gc.collect()


def _is_for_tests(function: object) -> bool:
    code = getattr(function, "__code__", None)
    path = Path(code.co_filename) if code else Path()
    return Path(__file__).parent in path.parents or path.parent.name == "testing"
