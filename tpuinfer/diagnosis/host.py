"""Checks of the host: memory, limits, its clock, and the folders where things are kept."""

from tpuinfer.diagnosis.facts import Facts, Folder
from tpuinfer.diagnosis.findings import Finding, fail, ok, size, warn

_FREE_MEMORY = 2 * 2**30
"""Bytes: jax, a tokenizer and the staging of weights take about that much."""
_FILES = 4096
"""Open files: one a connection, and a few hundred of jax's and the checkpoint's."""
_MAPS = 262_144
_PER_PROGRAM = 200
"""Pieces of memory that a compiled program of XLA:CPU takes (measured, jax 0.10.2)."""
_FREE_DISK = 10 * 2**30
"""Bytes: less does not hold a model of 4 billion parameters in bfloat16."""
_BEHIND = 86_400.0


def memory(facts: Facts) -> list[Finding]:
    """Cores and memory of the host."""
    said = f"{facts.cores} cores"
    if facts.memory is None or facts.memory_free is None:
        return [ok("host", said)]
    said += f", {size(facts.memory_free)} of {size(facts.memory)} memory free"
    if facts.memory_free < _FREE_MEMORY:
        return [warn("host", said, f"stop something: loading needs {size(_FREE_MEMORY)} or more")]
    return [ok("host", said)]


def limits(facts: Facts) -> list[Finding]:
    """What the system gives a process."""
    given, lines = facts.limits, []
    if given.files is not None and given.files < _FILES:
        most = given.files_most
        up = f"ulimit -n {_FILES if most is None else min(_FILES, most)}"
        if most is not None and most < _FILES:
            up += f", and raise the hard limit of {most} (/etc/security/limits.conf)"
        low = f"{given.files} open files; a server has one for each connection"
        lines.append(warn("limits", low, up))
    if given.maps is not None and given.maps < _MAPS and facts.platform in ("cpu", ""):
        low = (
            f"vm.max_map_count is {given.maps}: some {given.maps // _PER_PROGRAM} programs of "
            "XLA:CPU in one process, then it crashes"
        )
        up = f"a server has fewer; for many meshes or models: sudo sysctl vm.max_map_count={_MAPS}"
        lines.append(warn("limits", low, up))
    if given.address_space is not None:
        low = f"address space is limited to {size(given.address_space)}"
        lines.append(warn("limits", low, "ulimit -v unlimited: jax maps more than it uses"))
    return lines or [ok("limits", _said(facts))]


def huge_pages(facts: Facts) -> list[Finding]:
    """A TPU's runtime starts and stops faster with huge pages, as jax says at each start."""
    if not facts.has_tpu or not facts.huge_pages or "[always]" in facts.huge_pages:
        return []
    off = f"transparent huge pages are {facts.huge_pages!r}: the TPU's runtime starts slowly"
    how = "sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'"
    return [warn("huge pages", off, how)]


def clock(facts: Facts) -> list[Finding]:
    """A clock that is behind breaks TLS, and tells object storage that requests are old."""
    if facts.behind <= _BEHIND:
        return []
    days = facts.behind / 86_400
    late = f"the clock is {days:.0f} days behind the files of tpuinfer"
    return [warn("clock", late, "set it (timedatectl set-ntp true): downloads check certificates")]


def compiled(facts: Facts) -> list[Finding]:
    """The cache of compiled programs, without which every start compiles."""
    folder = facts.compiled
    if folder is None:
        return []
    if not folder.writable:
        return [
            warn(
                "compile cache",
                f"{folder.path} cannot be written: every start compiles anew",
                "name another with --cache-dir, or let this user write it",
            )
        ]
    if not folder.entries:
        empty = "empty" if folder.exists else "not there yet"
        return [ok("compile cache", f"{folder.path}, {empty}: the first start compiles")]
    held = f"{folder.entries} programs, {size(folder.bytes)}"
    return [ok("compile cache", f"{folder.path}, {held}")]


def models(facts: Facts) -> list[Finding]:
    """The folder of models, and its disk."""
    folder = facts.models
    if folder is None:
        return []
    said = folder.path + ("" if folder.exists else ", not there yet")
    if not folder.writable:
        remedy = "name another with --cache-dir, or let this user write it"
        return [fail("model cache", f"{folder.path} cannot be written", remedy)]
    return [_disk(folder, said)]


def _disk(folder: Folder, said: str) -> Finding:
    if folder.free is None:
        return ok("model cache", said)
    said += f", {size(folder.free)} free"
    if folder.free < _FREE_DISK:
        return warn(
            "model cache",
            f"{said}: 8 billion parameters take 16 GB, and twice that while they are converted",
            "make room, or name another folder with --cache-dir",
        )
    return ok("model cache", said)


def _said(facts: Facts) -> str:
    files = facts.limits.files
    return f"{'any number of' if files is None else files} open files"
