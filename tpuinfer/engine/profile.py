"""Recording what the devices do, with jax's profiler."""

import time
from pathlib import Path

import jax


def record(folder: Path, seconds: float) -> str:
    """Record for so many seconds into a new folder below `folder`; returns its name.

    One at a time: jax has one profiler.
    """
    name = f"profile-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09d}"
    with jax.profiler.trace(str(folder / name)):
        time.sleep(seconds)
    return name
