"""Which processes have an accelerator's files open, as /proc tells it."""

import os
import re
from pathlib import Path

from tpuinfer.diagnosis.facts import Holder
from tpuinfer.diagnosis.held import LOCK

_FILES = re.compile(rf"/dev/(accel\w*|vfio/\d+|nvidia\d+|kfd|dxg)|{re.escape(LOCK)}")
_HARMLESS = ("nvidia-persiste", "dcgm", "nvidia-smi", "nv-hostengine")
"""Commands that look at GPUs and hold no memory of theirs."""


def find(root: Path = Path("/"), own: frozenset[int] = frozenset()) -> tuple[list[Holder], int]:
    """Those processes, and how many could not be looked into.

    Args:
      root: of the machine's files. own: process ids that do not count.
    """
    found, hidden = [], 0
    for process in sorted(root.glob("proc/[0-9]*"), key=lambda path: int(path.name)):
        if int(process.name) in own:
            continue
        try:
            targets = sorted({os.readlink(fd) for fd in _descriptors(process)})
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # it ended meanwhile
        command = _command(process)
        if not command.startswith(_HARMLESS):
            pid = int(process.name)
            found += [Holder(path, pid, command) for path in targets if _FILES.fullmatch(path)]
    return found, hidden


def _descriptors(process: Path) -> list[Path]:
    """Links to what it has open; those that it closes meanwhile are left out."""
    return [fd for fd in (process / "fd").iterdir() if fd.is_symlink()]


def _command(process: Path) -> str:
    """Its name and first arguments, in at most 80 characters."""
    try:
        words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        name = os.path.basename(words[0]) or (process / "comm").read_text("utf-8").strip()
    except OSError:
        return "?"
    return " ".join([name, *words[1:]]).strip()[:80]
