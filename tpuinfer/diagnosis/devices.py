"""Checks of the devices that jax found: that there are any, how they lie, and their memory."""

import math
import re
from collections import Counter

from tpuinfer.diagnosis.facts import Device, Facts
from tpuinfer.diagnosis.findings import Finding, fail, ok, size, warn
from tpuinfer.planning.hardware import by_device_kind

_REMEDIES = (
    (r"lockfile|already in use|in use by|busy", "stop the process that holds it, then try again"),
    (r"unknown flags? in XLA_FLAGS", "unset XLA_FLAGS"),
    (r"not in the list of known backends", "unset JAX_PLATFORMS, or name one of those"),
    (r"permission denied", "let this user open the device files, or start as root"),
    (r"ModuleNotFoundError|ImportError|cannot import", "repair the packages named above"),
    (r"cuda", "does nvidia-smi work? install the driver, or pip install 'tpuinfer[cuda]'"),
    (
        r"backend '?tpu'?|libtpu",
        "is there a TPU? a container needs its device files (docker run --privileged); without one "
        "unset JAX_PLATFORMS",
    ),
)
_ELSE = "run python -c 'import jax; jax.devices()' and read what it says"
_SILENT = (
    "stop what holds the device; where a slice has several hosts, start the doctor on all of them "
    "at once"
)

_HELD = 0.05
"""Share of a device's memory from which something else counts as holding it."""
_LESS = 0.9
"""Share of what a chip gives programs below which jax was given less."""


def found(facts: Facts) -> list[Finding]:
    """Whether jax has devices, and which."""
    probed = facts.probed
    if probed.error is not None:
        asked = facts.environ.get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS is {asked}: {probed.error}" if asked else probed.error
        return [fail("devices", why, _SILENT if probed.timed_out else _remedy(why))]
    if facts.has_tpu and facts.platform == "cpu" and "JAX_PLATFORMS" not in facts.environ:
        return [
            fail(
                "devices",
                f"this machine has a TPU ({_where(facts)}), and jax found none",
                "run JAX_PLATFORMS=tpu python -c 'import jax; jax.devices()' and read what it says",
            )
        ]
    kinds = Counter((one.platform, one.kind) for one in probed.devices)
    parts = [f"{count} x {_name(platform, kind)}" for (platform, kind), count in kinds.items()]
    hosts = f", {probed.processes} processes" if probed.processes > 1 else ""
    return [ok("devices", f"{', '.join(parts)}{hosts}, after {probed.seconds:.1f} s")]


def topology(facts: Facts) -> list[Finding]:
    """How chips lie, and the meshes that use all devices."""
    devices = facts.probed.devices
    if not devices:
        return []
    if facts.platform == "cpu":
        return [ok("mesh", "any: on the CPU devices are simulated, as many as --mesh asks for")]
    lines = [
        ok("mesh", f"--mesh {', '.join(_meshes(len(devices)))} use all {len(devices)} devices")
    ]
    places = {one.coords for one in devices if one.coords is not None}
    if places:
        sides = [1 + max(axis) - min(axis) for axis in zip(*places, strict=True)]
        chip = by_device_kind(devices[0].kind)
        shape = "x".join(map(str, sides[: chip.torus if chip is not None else None]))
        if math.prod(sides) == len(places):
            lines.insert(0, ok("topology", f"{shape}, {len(places)} chips"))
        else:
            gap = f"{len(places)} chips lie in a box of {shape}, which has {math.prod(sides)}"
            lines.insert(0, warn("topology", gap, "collectives may be slow; ask for a whole slice"))
    return lines


def memory(facts: Facts) -> list[Finding]:
    """What a device has for programs, and whether something else has taken a part."""
    lines = [_told(facts)] if any(one.bytes_limit for one in facts.probed.devices) else []
    for gpu in facts.gpus:
        if gpu.used > _HELD * gpu.total:
            taken = f"{size(gpu.used)} of {size(gpu.total)} of {gpu.name} are in use already"
            lines.append(warn("memory", taken, "stop what holds it (nvidia-smi names it)"))
    return lines


def _told(facts: Facts) -> Finding:
    devices = [one for one in facts.probed.devices if one.bytes_limit]
    least = min(devices, key=_free)
    limit, used = least.bytes_limit or 0, least.bytes_in_use or 0
    said = f"{size(limit)} a device"
    if used > _HELD * limit:
        return warn(
            "memory",
            f"{said}, and {size(used)} of device {least.index} are in use already",
            "stop what holds it, or plan for less",
        )
    chip = by_device_kind(least.kind)
    if chip is not None and least.platform == "tpu":
        usual = chip.hbm_usable_bytes // chip.devices_per_chip
        if limit < _LESS * usual:
            more = f"{said}, a {chip.title} gives {size(usual)}"
            return warn("memory", more, "look for flags in LIBTPU_INIT_ARGS that reserve some")
    return ok("memory", f"{said}, {size(used)} in use")


def _free(device: Device) -> int:
    return (device.bytes_limit or 0) - (device.bytes_in_use or 0)


def _meshes(count: int) -> list[str]:
    """Every data x model of `count` devices, the widest model axis first."""
    return [f"{data}x{count // data}" for data in range(1, count + 1) if count % data == 0]


def _name(platform: str, kind: str) -> str:
    """The chip as people call it, and jax's words for it where they are others."""
    chip = by_device_kind(kind)
    if chip is None:
        return kind if kind == platform else f"{kind} ({platform})"
    return chip.title + ("" if chip.title == kind else f" ({kind!r} to jax)")


def _where(facts: Facts) -> str:
    return facts.tpu_files[0] if facts.tpu_files else f"{facts.pci_tpus} on the PCI bus"


def _remedy(error: str) -> str:
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, error, re.IGNORECASE):
            return remedy
    return _ELSE
