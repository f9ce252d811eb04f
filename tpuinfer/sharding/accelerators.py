"""Signs of an accelerator that a machine's files show, before any driver is asked.

Linux shows a TPU as /dev/accel* or /dev/vfio/*, and on the PCI bus; a GPU as /dev/nvidia*, as
/dev/kfd (AMD) or as /dev/dxg (Windows' Linux).
"""

from pathlib import Path

TPU_FILES = ("dev/accel*", "dev/vfio/*")
GPU_FILES = ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/kfd", "dev/dxg")

_PCI = "sys/bus/pci/devices/*"
_GOOGLE = "0x1ae0"
_NOT_TPUS = ("0x01", "0x02")
"""PCI classes of storage and network cards: Google's virtual machines have some of Google's too."""


def tpu_files(root: Path = Path("/")) -> tuple[Path, ...]:
    """Device files through which a TPU would be opened, sorted."""
    return _files(root, TPU_FILES)


def gpu_files(root: Path = Path("/")) -> tuple[Path, ...]:
    """Device files through which a GPU would be opened, sorted."""
    return _files(root, GPU_FILES)


def pci_tpus(root: Path = Path("/")) -> int:
    """How many cards of Google's are on the PCI bus that may be TPUs."""
    found = 0
    for card in root.glob(_PCI):
        maker, kind = _word(card / "vendor"), _word(card / "class")
        found += maker == _GOOGLE and not kind.startswith(_NOT_TPUS)
    return found


def any_sign(root: Path = Path("/")) -> bool:
    """True where an accelerator may be; false only where nothing looks like one."""
    return bool(tpu_files(root) or gpu_files(root) or pci_tpus(root))


def _files(root: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(sorted(path for pattern in patterns for path in root.glob(pattern)))


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
