"""Checks of who else has the accelerator: a TPU is of one process at a time."""

from collections.abc import Sequence

from tpuinfer.diagnosis.facts import Facts, Holder
from tpuinfer.diagnosis.findings import Finding, fail, ok, warn

LOCK = "/tmp/libtpu_lockfile"


def check(facts: Facts) -> list[Finding]:
    """A line for each process that holds a device, and one for a lock file in the way."""
    lines = [_held(pid, holders) for pid, holders in _by_pid(facts).items()]
    if facts.user and facts.lock_owner not in (None, facts.user):
        owner = f"{LOCK} belongs to user {facts.lock_owner}, and this is user {facts.user}"
        lines.append(fail("held", owner, f"sudo rm {LOCK}, once nothing uses libtpu"))
    if lines or not (facts.tpu_files or facts.gpu_files or facts.pci_tpus):
        return lines
    hidden = f" ({facts.hidden} processes of others could not be looked into)"
    return [ok("held", "no other process has a device open" + (hidden if facts.hidden else ""))]


def holds_tpu(holders: Sequence[Holder]) -> bool:
    """True if one of them has a TPU open, so that asking for it is in vain."""
    return any("/accel" in holder.path or "/vfio/" in holder.path for holder in holders)


def _by_pid(facts: Facts) -> dict[int, list[Holder]]:
    found: dict[int, list[Holder]] = {}
    for holder in facts.holders:
        found.setdefault(holder.pid, []).append(holder)
    return found


def _held(pid: int, holders: list[Holder]) -> Finding:
    paths = ", ".join(sorted({holder.path for holder in holders}))
    said = f"process {pid} ({holders[0].command}) has {paths} open"
    if all(_is_gpu(holder) for holder in holders):
        return warn("held", said, "it may hold memory: stop it, or plan for less")
    return fail("held", said, f"stop it (kill {pid}): a TPU is of one process at a time")


def _is_gpu(holder: Holder) -> bool:
    return "nvidia" in holder.path or holder.path.endswith(("kfd", "dxg"))
