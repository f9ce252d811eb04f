"""What is read, and its tokens in windows of one length."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tpuinfer.errors import ConfigError

LEAST_WINDOW = 2


@dataclass(frozen=True)
class Text:
    """A text and where it is from."""

    source: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Tokens in pieces that are read one apart from the other.

    Every token of a window but its first is scored, given those before it.

    Attributes:
      ids: of each window, what opens a text included.
    """

    ids: tuple[tuple[int, ...], ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """How many tokens are scored before each window, and in all at the end."""
        return tuple(itertools.accumulate((len(one) - 1 for one in self.ids), initial=0))

    @property
    def scored(self) -> int:
        return self.starts[-1]


def built_in() -> Text:
    """Some eight thousand tokens of a novel in the public domain."""
    name = "northanger_abbey.txt"
    content = (resources.files(__package__) / name).read_text("utf-8")
    return Text("Northanger Abbey, chapters 1-4 (built in)", content)


def from_file(path: Path) -> Text:
    """A UTF-8 file.

    Raises:
      ConfigError: it cannot be read, or holds no text.
    """
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"text is {str(path)!r}: it cannot be read as UTF-8 ({error})") from None
    if not content.strip():
        raise ConfigError(f"text is {str(path)!r}: there is nothing in it")
    return Text(path.name, content)


def cut(ids: Sequence[int], opening: Sequence[int], length: int, most: int | None) -> Windows:
    """Cut a text into windows; a rest that is too short to be scored is left out.

    >>> cut([5, 6, 7, 8, 9], [1], 3, None).ids
    ((1, 5, 6), (1, 7, 8), (1, 9))

    Args:
      ids: of the text alone. opening: what opens every window, such as BOS.
      length: tokens of a window. most: tokens of the text that are read; None = all.

    Raises:
      ConfigError: not one token could be scored.
    """
    least = max(LEAST_WINDOW, len(opening) + 1)
    if length < least:
        raise ConfigError(f"window is {length}: at least {least}; nearest: {least}")
    if most is not None and most < LEAST_WINDOW:
        raise ConfigError(f"tokens is {most}: at least {LEAST_WINDOW}; nearest: {LEAST_WINDOW}")
    step = length - len(opening)
    read = ids[:most]
    pieces = [(*opening, *read[start : start + step]) for start in range(0, len(read), step)]
    pieces = [piece for piece in pieces if len(piece) >= LEAST_WINDOW]
    if not pieces:
        raise ConfigError(f"the text has {len(ids)} tokens: at least {LEAST_WINDOW} are needed")
    return Windows(tuple(pieces))
