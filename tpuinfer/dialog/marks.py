"""Finding one of several short texts in a stream."""

import re
from collections.abc import Iterable


class Marks:
    """Texts to look for, none of which begins another."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(filter(None, texts)))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or "(?!)")
        self._longest = max(map(len, self.texts), default=0)

    def find(self, text: str, at: int) -> tuple[int, str]:
        """Where in `text`, from index `at`, the first one stands, and which; "" if none does."""
        match = self._pattern.search(text, at)
        return (match.start(), match[0]) if match else (len(text), "")

    def safe(self, text: str, at: int) -> int:
        """The index in `text`, in which there is none, from which one may begin."""
        for start in range(max(at, len(text) - self._longest + 1), len(text)):
            if self.begins(text, start):
                return start
        return len(text)

    def begins(self, text: str, at: int) -> bool:
        """True if `text` from `at` on is the beginning of one, or nothing."""
        rest = text[at : at + self._longest]
        return any(one.startswith(rest) for one in self.texts)
