"""Text that users write never becomes a control token.

A chat template mixes its own control tokens with what users wrote into one text. To tell the two
apart, the first character of each control text that users wrote is swapped before rendering for a
stand-in that occurs nowhere in the request; what is whole after rendering is the template's own.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from tpuinfer.errors import RequestError

Change = Callable[[str], str]

_STAND_INS = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Noncharacters, then private use: Unicode leaves these to a program, they are hardly ever text."""


class ControlText:
    """The spellings of a vocabulary's control tokens, and where a text holds them.

    Args:
      texts: one spelling a token; empty ones are left out.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        rests: dict[str, list[str]] = {}
        for text in sorted(filter(None, texts), key=len, reverse=True):
            rests.setdefault(text[0], []).append(re.escape(text[1:]))
        self._firsts = list(rests)
        # Each alternative begins with its own character, so that a search skips all others.
        by_first = {re.escape(first): "|".join(rest) for first, rest in rests.items()}
        self._whole = _pattern("({})", (f"{first}(?:{rest})" for first, rest in by_first.items()))
        self._starts = _pattern("{}", (f"{first}(?={rest})" for first, rest in by_first.items()))
        self._first = _pattern("{}", by_first)

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

        def hide(places: re.Pattern[str], text: str) -> str:
            return places.sub(lambda match: stand_in[match[0]], text)

        def hidden(places: re.Pattern[str]) -> list[str]:
            value, key = functools.partial(hide, places), functools.partial(hide, self._starts)
            return self.cut(render(_mapped(given, value, key)))

        certain = hidden(self._first)
        if any(map(self._starts.search, strings)):
            found = hidden(self._starts)
        else:
            found = self.cut(text)
            if found[1::2] == certain[1::2]:
                return None
        kept = found if found[1::2] == certain[1::2] else certain
        return [_restored(part, stand_in) for part in kept]


def _pattern(form: str, alternatives: Iterable[str]) -> re.Pattern[str]:
    """`form` with any of the alternatives in it; what matches nothing where there is none."""
    return re.compile(form.format("|".join(alternatives) or "(?!)"))


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


def _mapped(value: Any, change: Change, change_name: Change) -> Any:
    """`value` with every string changed; keys that are names, such as "role", by `change_name`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed = {}
        for key, entry in value.items():
            named = isinstance(key, str) and key.isidentifier()
            new = change_name(key) if named else _mapped(key, change, change_name)
            changed[new] = _mapped(entry, change, change_name)
        return changed
    if isinstance(value, (list, tuple)):
        return [_mapped(entry, change, change_name) for entry in value]
    return value


def _unused(strings: list[str]) -> Iterator[str]:
    """Characters that no string holds, neither themselves nor as JSON escapes them."""
    text = "\n".join(strings)
    seen, escapes = set(text), "\\u" in text
    for char in map(chr, chain(*_STAND_INS)):
        if char not in seen and not (escapes and json.dumps(char)[1:-1] in text):
            yield char


def _restored(text: str, stand_in: Mapping[str, str]) -> str:
    """`text` with the stand-ins, plain or escaped by a template's `tojson`, swapped back."""
    for char, other in stand_in.items():
        text = text.replace(other, char).replace(json.dumps(other)[1:-1], char)
    return text
