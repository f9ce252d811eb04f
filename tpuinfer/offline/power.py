"""How much energy the machine uses, where it says: RAPL for processors, NVML for NVIDIA's GPUs.

Both are counters of the machine, which others may use too. Where one of several like devices
cannot be read, none of them is counted: a part would pass for the whole. Where nothing can be
read, there is no figure: never a zero.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_RAPL = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")


class Counter(Protocol):
    """What has been used since the counter was made.

    Attributes:
      name: what it counts, in a word.
    """

    @property
    def name(self) -> str: ...

    def joules(self) -> float:
        """Raises OSError where it cannot be read any more."""


class RaplPackage:
    """One processor package (Linux powercap; AMD's are found there too).

    The counter starts again from 0 beyond `max_energy_range_uj`, at full load after a quarter of
    an hour or more: `joules` must be called more often than that.
    """

    name = "cpu"

    def __init__(self, folder: Path) -> None:
        """Raises OSError or ValueError: the package cannot be read; mostly only root may."""
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text("ascii"))
        self._last = self._read()
        self._used = 0

    def joules(self) -> float:
        now = self._read()
        gone = now - self._last
        self._used += gone if gone >= 0 else gone + self._range
        self._last = now
        return self._used / 1e6

    def _read(self) -> int:
        return int(self._file.read_text("ascii"))


class NvmlGpu:
    """One GPU that counts its energy: Volta and later."""

    name = "gpu"

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Raises nvml.NVMLError: this GPU has no such counter."""
        self._nvml, self._handle = nvml, handle
        self._first = self._read()

    def joules(self) -> float:
        try:
            return (self._read() - self._first) / 1e3
        except self._nvml.NVMLError as error:
            raise OSError(str(error)) from error

    def _read(self) -> int:
        """Millijoules since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def rapl(root: Path = _RAPL) -> list[Counter]:
    """All packages, or none; a package's parts and the platform are not counted twice."""
    try:
        named = [path for path in sorted(root.iterdir()) if _PACKAGE.fullmatch(path.name)]
        return [RaplPackage(folder) for folder in named if _is_package(folder)]
    except (OSError, ValueError):
        return []


def nvml(visible: str | None = None, library: Any = None) -> list[Counter]:
    """The GPUs, where all of them count their energy; or none.

    Args:
      visible: the indices or UUIDs that the process may use, with commas, as the CUDA driver is
        told; None for all.
      library: what speaks to the driver; None for pynvml, if it is installed.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return []
    try:
        library.nvmlInit()
        return [NvmlGpu(library, handle) for handle in _handles(library, visible)]
    except library.NVMLError:
        return []


class Energy:
    """What several counters have counted together since they were made."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = list(counters)

    @property
    def joules(self) -> float | None:
        """None where nothing counts, or a counter could not be read: a part would mislead."""
        if not self._counters:
            return None
        try:
            return sum(counter.joules() for counter in self._counters)
        except (OSError, ValueError):
            self._counters = []
            return None

    @property
    def of(self) -> str:
        """What is counted, "cpu, gpu"."""
        return ", ".join(sorted({counter.name for counter in self._counters}))


def _is_package(folder: Path) -> bool:
    """Raises OSError or ValueError where it cannot be told."""
    return (folder / "name").read_text("ascii").startswith("package")


def _handles(library: Any, visible: str | None) -> list[Any]:
    if visible is None:
        count = library.nvmlDeviceGetCount()
        return [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        library.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdigit()
        else library.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
