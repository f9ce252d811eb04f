"""Every test runs on 8 simulated CPU devices; rank promotion is an error, warnings are too.

`--platform gpu` (or tpu) runs on the machine's own devices instead: then the tests that need a
mesh need that many.
"""

import os
import signal

import jax
import pytest

from tpuinfer.sharding.simulate import prepare_cpu_devices


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
