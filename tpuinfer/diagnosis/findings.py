"""What a check says: one line."""

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is; a FAIL keeps tpuinfer from working as it should."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
      what: the check's name, such as "libtpu".
      found: the values that it saw, and the rule they break if they do.
      remedy: what to do; empty where nothing is to be done.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    return Finding(Level.OK, what, found)


def warn(what: str, found: str, remedy: str) -> Finding:
    return Finding(Level.WARN, what, found, remedy)


def fail(what: str, found: str, remedy: str) -> Finding:
    return Finding(Level.FAIL, what, found, remedy)


def size(count: int) -> str:
    """Bytes for people: "15.75 GiB", "512 MiB", "3 KiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{count} B"
