"""Simulated CPU devices, and a silent libtpu: what must act before any jax backend exists."""

import importlib.metadata
import importlib.util
import logging
import os
import sys
from pathlib import Path

from tpuinfer.sharding import accelerators

_THREADS_PER_DEVICE = 4
"""Collectives hold a thread of XLA's pool each; fewer than this and programs in flight deadlock."""

_BY_JAX = ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY")
"""Variables of TPUs that importing jax sets on any machine."""

log = logging.getLogger(__name__)


def settle_platform(root: Path = Path("/")) -> bool:
    """Choose the CPU, for this process and its children, where nothing else can be.

    libtpu is installed on many machines without a TPU, for its compiler; jax then asks it for
    devices, and it says five lines on stderr. The choice is left to jax wherever there may be more:
    any sign of an accelerator, another plugin of jax's, or a variable or a setting that says which
    platform there is. Does not import jax.

    Args:
      root: of the machine's files.

    Returns:
      Whether the CPU was chosen.
    """
    said = [name for name in os.environ if name.startswith("TPU_") and name not in _BY_JAX]
    if said or "JAX_PLATFORMS" in os.environ or "JAX_FORCE_TPU_INIT" in os.environ:
        return False
    if importlib.util.find_spec("libtpu") is None or accelerators.any_sign(root):
        return False
    if importlib.metadata.entry_points(group="jax_plugins"):
        return False
    if (jax := sys.modules.get("jax")) is not None:
        if jax.config.jax_platforms is not None:
            return False
        jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_PLATFORMS"] = "cpu"
    return True


def prepare_cpu_devices(count: int) -> None:
    """Ask for `count` CPU devices, should the platform turn out to be the CPU.

    Harmless on a TPU or GPU. Does nothing when the backend already exists: then the devices are
    what they are, and building the mesh says so if they are too few.
    """
    settle_platform()
    if count <= 1:
        return
    import jax

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
