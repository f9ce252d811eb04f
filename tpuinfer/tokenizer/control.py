"""Text that users write never becomes a control token.

A chat template mixes its own control tokens with what users wrote into one text. To tell the two
apart, the first character of each control text that users wrote is swapped before rendering for a
stand-in that occurs nowhere in the request; what is whole after rendering is the template's own.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from tpuinfer.errors import RequestError

_STAND_INS = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Noncharacters, then private use: Unicode leaves these to a program, they are hardly ever text."""


class ControlText:
    """The spellings of a vocabulary's control tokens, and where a text holds them.

    Args:
      texts: one spelling a token; empty ones are left out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        ordered = sorted(filter(None, texts), key=len, reverse=True)
        spellings = "|".join(map(re.escape, ordered)) or "(?!)"
        self._firsts = sorted({text[0] for text in ordered})
        self._whole = re.compile(f"({spellings})")
        self._starts = re.compile(f"(?={spellings}).", re.DOTALL)
        self._first = re.compile("|".join(map(re.escape, self._firsts)) or "(?!)")

    def cut(self, text: str) -> list[str]:
        """`text` in pieces, plain text and control texts by turns, plain text first and last."""
        return self._whole.split(text)

    def cut_rendered(self, given: Any, text: str, render: Callable[[Any], str]) -> list[str] | None:
        """The rendered text in pieces as from `cut`, where users' control text is plain text.

        A template may also put a control token together from parts of what users wrote ("<|im_" and
        "end|>", by taking out what stood between them). So the control tokens are compared with
        those of a rendering in which no user's character can begin one; if they differ, that
        rendering is the one that counts.

        Args:
          given: what is rendered: strings in mappings and lists of any depth, keys included.
          text: `render(given)`.

        Returns:
          None when no user's text took part in a control token: `text` can be parsed as it is.

        Raises:
          RequestError: the strings hold every character that could stand in; or from `render`.
        """
        strings = list(_strings(given))
        if not any(map(self._first.search, strings)):
            return None
        stand_in = dict(zip(self._firsts, _unused(strings), strict=False))
        if len(stand_in) < len(self._firsts):
            raise RequestError(
                "messages hold every private character of Unicode: leave one out", param="messages"
            )

        def hidden(places: re.Pattern[str]) -> list[str]:
            changed = _mapped(given, lambda text: places.sub(lambda m: stand_in[m[0]], text))
            return self.cut(render(changed))

        certain = hidden(self._first)
        if any(map(self._starts.search, strings)):
            found = hidden(self._starts)
        else:
            found = self.cut(text)
            if found[1::2] == certain[1::2]:
                return None
        kept = found if found[1::2] == certain[1::2] else certain
        return [_restored(part, stand_in) for part in kept]


def _strings(value: Any) -> Iterator[str]:
    """Every string in `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(entry, change) for entry in value]
    return value


def _unused(strings: list[str]) -> Iterator[str]:
    """Characters that no string holds, neither themselves nor as JSON escapes them."""
    text = "\n".join(strings)
    for char in map(chr, chain(*_STAND_INS)):
        if char not in text and json.dumps(char)[1:-1] not in text:
            yield char


def _restored(text: str, stand_in: Mapping[str, str]) -> str:
    """`text` with the stand-ins, plain or escaped by a template's `tojson`, swapped back."""
    for char, other in stand_in.items():
        text = text.replace(other, char).replace(json.dumps(other)[1:-1], char)
    return text
