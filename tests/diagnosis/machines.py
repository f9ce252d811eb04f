"""Machines that nobody has, for the checks; `changes` are fields of Facts."""

import dataclasses

from tpuinfer.diagnosis.facts import Device, Facts, Folder, Limits, Needed, Probed
from tpuinfer.diagnosis.findings import Finding, Level

GIB = 2**30
VERSIONS = {
    "tpuinfer": "0.1.0",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "libtpu": "0.0.42.1",
    "flax": "0.12.8",
    "orbax-checkpoint": "0.12.8",
    "numpy": "2.4.6",
}
NEEDED = (
    Needed("flax", "<0.13,>=0.12", "tpuinfer"),
    Needed("numpy", ">=2.0", "tpuinfer"),
    Needed("jaxlib", "<=0.10.2,>=0.10.1", "jax"),
    Needed("libtpu", "==0.0.42.*", "jax[tpu]"),
)
CPU = Probed((Device(0, "cpu", "cpu"),), seconds=1.0)
_LIMITS = Limits(files=65_536, files_most=65_536, maps=1_048_576)


def laptop(**changes) -> Facts:
    """CPU only, and nothing wrong with it."""
    facts = Facts(
        python="3.11.9",
        versions=VERSIONS,
        needed=NEEDED,
        probed=CPU,
        cores=8,
        memory=32 * GIB,
        memory_free=16 * GIB,
        compiled=Folder("/cache/compiled", entries=12, bytes=3 * 2**20),
        models=Folder("/cache", free=200 * GIB),
        limits=_LIMITS,
    )
    return dataclasses.replace(facts, **changes)


def chips(sides=(2, 4), used=0, limit=63 * GIB // 4, kind="TPU v5 lite") -> Probed:
    """A slice of one host, its chips in a full box."""
    places = [(x, y, 0) for y in range(sides[1]) for x in range(sides[0])]
    devices = tuple(
        Device(
            index,
            "tpu",
            kind,
            coords=place,
            bytes_limit=limit,
            bytes_in_use=used if not index else 0,
        )
        for index, place in enumerate(places)
    )
    return Probed(devices, seconds=9.5)


def tpu_vm(**changes) -> Facts:
    """A v5e-8 of one host, as it should be."""
    files = tuple(f"/dev/vfio/{index}" for index in range(8))
    vm = {"tpu_files": (*files, "/dev/vfio/vfio"), "pci_tpus": 8, "probed": chips()}
    return laptop(**{**vm, **changes})


def lines(check, facts: Facts, level: Level | None = None) -> list[str]:
    """What a check found, with its remedy; of one level only, if it is given."""
    found: list[Finding] = check(facts)
    assert all(one.remedy for one in found if one.level is not Level.OK), "trouble has a remedy"
    return [f"{one.what}: {one.found}; {one.remedy}" for one in found if level in (None, one.level)]
