"""JSON as it comes in: where a value ends, in time linear in its length (RFC 8259)."""

import json
import re
from typing import Any

MAX_DEPTH = 200
"""Brackets within brackets; beyond this many a text is no JSON here."""

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\]*')
_ATOM = re.compile(r"[-+.0-9A-Za-z]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_ATOM_LIMIT = 400  # characters of one number: more digits than a double can mean
_CONTROL = {code: json.dumps(chr(code))[1:-1] for code in range(0x20)}


class JsonFaultError(Exception):
    """The text is not JSON; `at` is the index of the first character that cannot stand there."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class JsonScanner:
    """Follows one JSON value through text that comes in parts.

    Control characters inside strings, which models write and JSON forbids, come back escaped: what
    `step` gives out joins to valid JSON.

    Attributes:
      done: the value is complete. A number on its own never is: nothing says where it ends.
    """

    def __init__(self) -> None:
        self.done = False
        self._open: list[str] = []
        self._wants = "value"  # value, first (value or end), key, first key, colon, comma
        self._in_string = False
        self._is_key = False
        self._escape = ""
        self._atom = ""

    @property
    def held(self) -> str:
        """What was taken and not given out yet: part of an escape or of a word."""
        return self._escape or self._atom

    @property
    def place(self) -> str:
        """Where in an object on the outside the text is: "key", "value", or "" for between."""
        if len(self._open) != 1:
            return "value" if self._open else ""
        return {"value": "value", "key": "key", "first key": "key"}.get(self._wants, "")

    def step(self, text: str, at: int) -> tuple[str, int]:
        """Take one part of `text` from index `at`: a character that has a meaning, or a run.

        Returns:
          What it gives out, and the index of the first character it did not take.

        Raises:
          JsonFaultError: no value goes on like this.
        """
        out: list[str] = []
        if self._in_string:
            at = self._string(text, at, out)
        elif self._atom or text[at] not in ' \t\n\r{}[]:,"':
            at = self._word(text, at, out)
        else:
            at = self._mark(text, at, out)
        return "".join(out), at

    def _mark(self, text: str, at: int, out: list[str]) -> int:
        """White space or one structural character."""
        end = _end(_SPACE, text, at)
        if end > at:
            out.append(text[at:end])
            return end
        char, wants = text[at], self._wants
        if char in "{[" and wants in ("value", "first") and len(self._open) < MAX_DEPTH:
            self._open.append("}" if char == "{" else "]")
            self._wants = "first key" if char == "{" else "first"
        elif (
            char in "}]" and wants in ("first", "first key", "comma") and self._open[-1:] == [char]
        ):
            self._open.pop()
            self._ended()
        elif char == '"' and wants in ("value", "first", "key", "first key"):
            self._in_string, self._is_key = True, wants in ("key", "first key")
        elif char == ":" and wants == "colon":
            self._wants = "value"
        elif char == "," and wants == "comma":
            self._wants = "key" if self._open[-1] == "}" else "value"
        else:
            raise JsonFaultError(at)
        out.append(char)
        return at + 1

    def _string(self, text: str, at: int, out: list[str]) -> int:
        if self._escape:
            return self._escaped(text, at, out)
        end = _end(_PLAIN, text, at)
        out.append(text[at:end].translate(_CONTROL))
        if end == len(text):
            return end
        if text[end] == "\\":
            self._escape = "\\"
            return end + 1
        out.append('"')
        self._in_string = False
        if self._is_key:
            self._wants = "colon"
        else:
            self._ended()
        return end + 1

    def _escaped(self, text: str, at: int, out: list[str]) -> int:
        """One character after a backslash; an escape is given out when it is whole."""
        char = text[at]
        valid = char in '"\\/bfnrtu' if self._escape == "\\" else char in "0123456789abcdefABCDEF"
        if not valid:
            raise JsonFaultError(at)
        self._escape += char
        if len(self._escape) == (6 if self._escape[1] == "u" else 2):
            out.append(self._escape)
            self._escape = ""
        return at + 1

    def _word(self, text: str, at: int, out: list[str]) -> int:
        """A number, true, false or null."""
        if self._wants not in ("value", "first") or not self._open:
            raise JsonFaultError(at)
        end = _end(_ATOM, text, at)
        self._atom += text[at:end]
        if len(self._atom) > _ATOM_LIMIT or (end == at and not self._atom):
            raise JsonFaultError(at)
        if end < len(text):
            known = self._atom in ("true", "false", "null") or _NUMBER.fullmatch(self._atom)
            if not known:
                raise JsonFaultError(at)
            out.append(self._atom)
            self._atom = ""
            self._ended()
        return end

    def _ended(self) -> None:
        self._wants = "comma"
        self.done = not self._open


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the run ends that begins at `at`."""
    match = pattern.match(text, at)
    return match.end() if match else at


def parsed(text: str) -> Any:
    """The value of JSON text.

    Raises:
      ValueError: it is not JSON, or not to be held in memory as Python holds it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
