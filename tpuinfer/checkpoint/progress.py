"""How long work reports itself; the front doors draw it."""

from typing import Protocol


class Progress(Protocol):
    """Called from time to time with a label and how far it is, `done` of `total` bytes."""

    def __call__(self, label: str, done: int, total: int, /) -> None: ...


def silent(label: str, done: int, total: int, /) -> None:
    """Draw nothing."""
