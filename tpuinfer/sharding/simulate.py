"""Simulated CPU devices: the one place that must act before any jax backend exists."""

import logging
import os

import jax

_THREADS_PER_DEVICE = 4
"""Collectives hold a thread of XLA's pool each; fewer than this and programs in flight deadlock."""

log = logging.getLogger(__name__)


def prepare_cpu_devices(count: int) -> None:
    """Ask for `count` CPU devices, should the platform turn out to be the CPU.

    Harmless on a TPU or GPU. Does nothing when the backend already exists: then the devices are
    what they are, and building the mesh says so if they are too few.
    """
    if count <= 1:
        return
    current = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if current < count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError:
            log.debug("the backend exists already: cannot simulate %d devices", count)
            return
    threads = count * _THREADS_PER_DEVICE
    if int(os.environ.get("NPROC", "0") or 0) < threads:
        os.environ["NPROC"] = str(threads)
