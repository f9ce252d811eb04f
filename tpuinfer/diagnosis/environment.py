"""Checks of variables: what hides a device, what changes programs, and what several hosts need."""

import re

from tpuinfer.diagnosis.facts import Facts
from tpuinfer.diagnosis.findings import Finding, fail, ok, warn
from tpuinfer.planning.hardware import CHIPS

_CHANGES = {
    "LIBTPU_INIT_ARGS": "the TPU compiler's",
    "XLA_FLAGS": "XLA's",
}

_PER_CORE = ("v2", "v3", "v4", "v5p", "tpu7x")
"""Slices of these are named by TensorCores, two a chip; of others by chips."""

_ID, _NAMES = "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"


def check(facts: Facts) -> list[Finding]:
    """A line for each variable that matters here; one that says so where none does."""
    lines = [*_platforms(facts), *_programs(facts), *_threads(facts), *_workers(facts)]
    return lines or [ok("environment", "no variable hides a device or changes programs")]


def _platforms(facts: Facts) -> list[Finding]:
    value = facts.environ.get("JAX_PLATFORMS", "").lower()
    names = [name for name in value.split(",") if name]
    if not names or "tpu" in names:
        return []
    if facts.has_tpu:
        hides = f"JAX_PLATFORMS is {value}, which hides this machine's TPU"
        return [warn("environment", hides, "unset JAX_PLATFORMS")]
    if facts.gpu_files and not {"cuda", "gpu", "rocm"} & {*names}:
        hides = f"JAX_PLATFORMS is {value}, which hides this machine's GPU"
        return [warn("environment", hides, "unset JAX_PLATFORMS")]
    return [ok("environment", f"JAX_PLATFORMS is {value}")]


def _programs(facts: Facts) -> list[Finding]:
    return [
        warn(
            "environment",
            f"{name} is {value[:120]!r}: {whose} flags change programs, their memory and perhaps "
            "their bits",
            f"unset {name} unless it is meant",
        )
        for name, whose in _CHANGES.items()
        if (value := facts.environ.get(name, "").strip())
    ]


def _threads(facts: Facts) -> list[Finding]:
    value = facts.environ.get("NPROC")
    if value is None:
        return []
    if not value.isdigit() or not int(value):
        wrong = f"NPROC is {value!r}: XLA reads it as its number of threads"
        return [fail("environment", wrong, "unset NPROC, or give a number of 1 or more")]
    return [ok("environment", f"NPROC is {value}: XLA's threads on the CPU; --mesh may raise it")]


def _workers(facts: Facts) -> list[Finding]:
    """A slice of several hosts must tell each of them who it is."""
    number, text = facts.environ.get(_ID), facts.environ.get(_NAMES)
    names = [name for name in (text or "").split(",") if name]
    if number is not None and names:
        if number.isdigit() and int(number) < len(names):
            return [ok("workers", f"this is worker {number} of {len(names)}")]
        wrong = f"{_ID} is {number!r}, and {_NAMES} has {len(names)} names"
        return [fail("workers", wrong, f"give each host a {_ID} from 0 to {len(names) - 1}")]
    if len(names) > 1:
        missing = f"{_NAMES} has {len(names)} names, and {_ID} is not set"
        return [fail("workers", missing, f"set {_ID} to this host's place in them, from 0")]
    slice_, local = _slice(facts), _local(facts)
    if slice_ is None or not local or slice_ <= local or names:
        return []
    several = f"the slice has {slice_} chips and this host {local}, and {_ID} and {_NAMES} are not"
    return [
        warn(
            "workers",
            f"{several} set",
            "set both on every host, unless libtpu can ask the metadata server (a TPU VM can)",
        )
    ]


def _slice(facts: Facts) -> int | None:
    """Chips of the slice, from TPU_ACCELERATOR_TYPE, such as v5litepod-16, or TPU_TOPOLOGY."""
    match = re.fullmatch(r"(.+)-(\d+)", facts.environ.get("TPU_ACCELERATOR_TYPE", ""))
    if match and match[1] in {"v2", "v3", *(chip.accelerator_type for chip in CHIPS.values())}:
        return int(match[2]) // (2 if match[1] in _PER_CORE else 1)
    sides = re.fullmatch(r"\d+(x\d+)+", facts.environ.get("TPU_TOPOLOGY", ""))
    if not sides:
        return None
    count = 1
    for side in sides[0].split("x"):
        count *= int(side)
    return count


def _local(facts: Facts) -> int:
    """Chips of this host, as its files show them."""
    chips = [path for path in facts.tpu_files if re.search(r"/(accel|vfio/)\d+$", path)]
    return len(chips) or facts.pci_tpus
