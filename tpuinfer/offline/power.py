"""How much energy the machine uses, where it says: RAPL for processors, NVML for NVIDIA's GPUs.

Both are counters of the machine, which others may use too. What cannot be read is left out, and
where nothing can be, there is no figure: never a zero.
"""

import contextlib
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
    """The packages that can be read; a package's parts and the platform are not counted twice."""
    found: list[Counter] = []
    with contextlib.suppress(OSError):
        for folder in sorted(root.iterdir()):
            if _PACKAGE.fullmatch(folder.name) and _is_package(folder):
                with contextlib.suppress(OSError, ValueError):
                    found.append(RaplPackage(folder))
    return found


def nvml(visible: str | None = None, library: Any = None) -> list[Counter]:
    """The GPUs that count their energy.

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
    found: list[Counter] = []
    try:
        library.nvmlInit()
        for handle in _handles(library, visible):
            with contextlib.suppress(library.NVMLError):
                found.append(NvmlGpu(library, handle))
    except library.NVMLError:
        return found
    return found


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
    try:
        return (folder / "name").read_text("ascii").startswith("package")
    except OSError:
        return False


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
