"""The facts of this machine, from its files, its packages, and jax's answer."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tpuinfer.diagnosis import holders, probe
from tpuinfer.diagnosis.facts import Facts, Folder, Gpu, Holder, Limits, Needed, Probed
from tpuinfer.diagnosis.held import LOCK, holds_tpu
from tpuinfer.diagnosis.packages import SHOWN
from tpuinfer.diagnosis.specifiers import parse
from tpuinfer.sharding import accelerators

_MATTER = ("JAX_", "TPU_", "XLA_", "LIBTPU_", "CUDA_VISIBLE", "MEGASCALE_")
_NPROC = "NPROC"
_COMPILED = "compiled"
_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
_SMI_SECONDS = 20


def collect(
    environ: Mapping[str, str],
    *,
    cache_dir: Path | None,
    seconds: float,
    root: Path = Path("/"),
) -> Facts:
    """What there is to know of this machine.

    Args:
      environ: this process's variables, from before jax was imported, which adds some.
      cache_dir: of models; None = the user's.
      seconds: that jax may take to find its devices.
      root: of the machine's files.
    """
    matters = {
        name: value for name, value in environ.items() if name.startswith(_MATTER) or name == _NPROC
    }
    held, hidden = holders.find(root, own=frozenset({os.getpid(), os.getppid()}))
    memory, free = _memory(root)
    models = _cache(cache_dir)
    versions, needed = _packages()
    return Facts(
        python=platform.python_version(),
        versions=versions,
        needed=needed,
        environ=matters,
        tpu_files=tuple(map(str, accelerators.tpu_files(root))),
        gpu_files=tuple(map(str, accelerators.gpu_files(root))),
        pci_tpus=accelerators.pci_tpus(root),
        probed=_probed(environ, held, seconds),
        holders=tuple(held),
        hidden=hidden,
        lock_owner=_owner(root / LOCK.lstrip("/")),
        user=os.getuid(),
        gpus=_gpus(),
        cores=_cores(),
        memory=memory,
        memory_free=free,
        compiled=_compiled(environ, models),
        models=folder(models) if models is not None else None,
        limits=_limits(root),
        huge_pages=_text(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        behind=max(0.0, Path(__file__).stat().st_mtime - time.time()),
    )


def folder(path: str | Path, *, count: bool = False) -> Folder:
    """A folder, its disk, and, with `count`, the compiled programs that it holds."""
    if "://" in str(path):
        return Folder(str(path))
    place = Path(path).expanduser()
    above = place
    while not above.exists() and above != above.parent:
        above = above.parent
    entries = total = 0
    if count and place.is_dir():
        with os.scandir(place) as found:
            sizes = [one.stat().st_size for one in found if one.name.endswith("-cache")]
        entries, total = len(sizes), sum(sizes)
    return Folder(
        str(place),
        exists=place.exists(),
        writable=above.is_dir() and os.access(above, os.W_OK | os.X_OK),
        free=shutil.disk_usage(above).free,
        entries=entries,
        bytes=total,
    )


def _packages() -> tuple[dict[str, str | None], tuple[Needed, ...]]:
    """Versions of what matters, and what those packages ask of each other."""
    versions = {name: _version(name) for name in SHOWN}
    needed = []
    for by in ("tpuinfer", "jax", "flax", "orbax-checkpoint"):
        for line in _requirements(by):
            name, specifier, extra = parse(line)
            if name in SHOWN and specifier and (not extra or (by, extra) == ("jax", "tpu")):
                needed.append(Needed(name, specifier, f"{by}[{extra}]" if extra else by))
    return versions, tuple(needed)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _probed(environ: Mapping[str, str], held: list[Holder], seconds: float) -> Probed:
    """Jax's answer; a TPU that another process has is not asked for, which would hang or abort."""
    if first := next((one for one in held if holds_tpu([one])), None):
        return Probed(error=f"not asked: process {first.pid} has {first.path} open, in use by it")
    return probe.ask(environ, seconds)


def _cache(given: Path | None) -> Path | None:
    """The folder of models; None where the packages that know it are broken."""
    if given is not None:
        return given
    try:
        from tpuinfer.checkpoint.load import default_cache_dir

        return default_cache_dir()
    except Exception:  # a broken package is another check's finding
        return None


def _compiled(environ: Mapping[str, str], models: Path | None) -> Folder | None:
    """The folder that jax is told of, or else the one beside the models."""
    told = environ.get("JAX_COMPILATION_CACHE_DIR")
    if told:
        return folder(told, count=True)
    return folder(models / _COMPILED, count=True) if models is not None else None


def _limits(root: Path) -> Limits:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    maps = _text(root / "proc/sys/vm/max_map_count")
    return Limits(
        files=_finite(soft),
        files_most=_finite(hard),
        maps=int(maps) if maps.isdigit() else None,
        address_space=_finite(space),
    )


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Bytes of the host's memory, and those that are free or could be; a container's, in one."""
    rows = dict(
        line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line
    )

    def of(name: str) -> int | None:
        words = rows.get(name, "").split()
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    total, free = of("MemTotal"), of("MemAvailable")
    most, used = (_text(root / "sys/fs/cgroup" / f"memory.{one}") for one in ("max", "current"))
    if total is None or free is None or not (most.isdigit() and used.isdigit()):
        return total, free
    return min(total, int(most)), max(0, min(free, int(most) - int(used)))


def _gpus() -> tuple[Gpu, ...]:
    """GPUs as nvidia-smi shows them; none where there is no such program, or it fails."""
    if shutil.which(_SMI[0]) is None:
        return ()
    try:
        done = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return gpus_of(done.stdout) if done.returncode == 0 else ()


def gpus_of(text: str) -> tuple[Gpu, ...]:
    """GPUs in lines such as "NVIDIA H200, 143771, 12", the numbers in MiB."""
    found = []
    for line in text.splitlines():
        name, *numbers = (part.strip() for part in line.rsplit(",", 2))
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            total, used = (int(number) * 2**20 for number in numbers)
            found.append(Gpu(name, total, used))
    return tuple(found)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
