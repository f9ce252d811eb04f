"""Calls written as Python: [f(a=1, b="x"), g()]. Literals only, and nothing is ever evaluated.

The form of Llama 4 and of the Gemma 3 guides. Each call is given out when it is complete.
"""

import json
import re
from typing import Any

from tpuinfer.dialog.blocks import Calls, NotACallError
from tpuinfer.dialog.json_text import MAX_DEPTH

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<name>[A-Za-z_][\w.]*)|(?P<mark>[\[\](){},:=]))""",
    re.DOTALL,
)
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False}
_CONSTANTS["null"] = None
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class PythonicCalls:
    """A list of calls; `bare` ones need no brackets around them (where a marker announced them)."""

    def __init__(self, calls: Calls, sure: bool) -> None:
        self.done = False
        self._calls = calls
        self._sure = sure
        self._raw: list[str] = []
        self._listed = False
        self._in_call = False
        self._found = False
        self._expect = ""
        self._quote = ""
        self._escaped = False

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and not self.done:
            char = text[at]
            at = self._inside(char, at) if self._in_call else self._between(char, at)
        return at

    def finish(self) -> str:
        left = "".join(self._raw)
        return left if self._in_call or not self._found else left.strip(" \n,")

    def _between(self, char: str, at: int) -> int:
        if char == "[" and not self._listed and not self._found:
            self._listed = True
        elif char == "]" and self._listed:
            if not self._found:
                raise NotACallError("".join(self._raw), at)
            self.done = True
            self._raw = []
            return at + 1
        elif (char.isalpha() or char == "_") and (self._listed or self._sure):
            self._in_call = True
            if self._found:
                self._raw = []
        elif not (char.isspace() or (char in ",;" and self._found)):
            raise NotACallError(self.finish(), at)
        self._raw.append(char)
        return at + 1

    def _inside(self, char: str, at: int) -> int:
        """One character of a call: its end is where the brackets close outside of strings."""
        if self._quote:
            if self._escaped or char == "\\":
                self._escaped = not self._escaped
            elif char == self._quote:
                self._quote = ""
        elif char in "\"'" and self._expect:
            self._quote = char
        elif char in _PAIRS and (self._expect or char == "("):
            self._expect += _PAIRS[char]
        elif char in ")]}":
            if self._expect[-1:] != char:
                raise NotACallError("".join(self._raw), at)
            self._expect = self._expect[:-1]
        elif not self._expect and not (char.isalnum() or char in "_.-"):
            raise NotACallError("".join(self._raw), at)
        if len(self._expect) > MAX_DEPTH:
            raise NotACallError("".join(self._raw), at)
        self._raw.append(char)
        if char == ")" and not self._expect and not self._quote:
            self._end(at + 1)
        return at + 1

    def _end(self, at: int) -> None:
        text = "".join(self._raw)
        name, arguments = text[: text.index("(")].lstrip("[ \t\r\n"), text[text.index("(") + 1 : -1]
        try:
            if not (self._sure or self._calls.offers(name)):
                raise ValueError("no tool")
            value = json.dumps(_Literals(arguments).keywords(), ensure_ascii=False)
        except ValueError:
            raise NotACallError(text, at) from None
        self._calls.start(name)
        self._calls.arguments(value)
        self._raw, self._in_call, self._found = [], False, True


class _Literals:
    """Python literals in a text, as JSON knows them.

    Raises (its methods):
      ValueError: something else stands there.
    """

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise ValueError("no literal")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        self._at = 0

    def keywords(self) -> dict[str, Any]:
        """`a=1, b="x"` to the end of the text, as a mapping; an empty text gives an empty one."""
        found: dict[str, Any] = {}
        while self._at < len(self._tokens):
            kind, name = self._next()
            if kind != "name" or name in found or self._next() != ("mark", "="):
                raise ValueError("no keyword argument")
            found[name] = self._value()
            if self._at < len(self._tokens) and self._next() != ("mark", ","):
                raise ValueError("no comma")
        return found

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise ValueError("cut short")
        self._at += 1
        return self._tokens[self._at - 1]

    def _value(self) -> Any:
        kind, text = self._next()
        if kind == "text":
            return _unquoted(text)
        if kind == "number":
            return _number(text)
        if kind == "name" and text in _CONSTANTS:
            return _CONSTANTS[text]
        if kind == "mark" and text in ("[", "("):
            return self._items(_PAIRS[text])
        if kind == "mark" and text == "{":
            return self._entries()
        raise ValueError("no literal")

    def _closes(self, mark: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("mark", mark):
            self._at += 1
            return True
        return False

    def _items(self, end: str) -> list[Any]:
        items: list[Any] = []
        while not self._closes(end):
            if items and self._next() != ("mark", ","):
                raise ValueError("no comma")
            if items and self._closes(end):
                break
            items.append(self._value())
        return items

    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not self._closes("}"):
            if entries and self._next() != ("mark", ","):
                raise ValueError("no comma")
            if entries and self._closes("}"):
                break
            key = self._value()
            if not isinstance(key, str) or self._next() != ("mark", ":"):
                raise ValueError("no entry")
            entries[key] = self._value()
        return entries


def _number(text: str) -> int | float:
    number = float(text)
    if number in (float("inf"), float("-inf")) or len(text) > 400:
        raise ValueError("no number of JSON")
    return number if any(char in text for char in ".eE") else int(text)


def _unquoted(text: str) -> str:
    """The string that a quoted one means; unknown escapes stay as they are written."""

    def one(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is not None:
            return chr(int(code, 16)) if int(code, 16) < 0x110000 else match[0]
        char = match[4]
        return _ESCAPES.get(char, char if char in "\\\"'/" else match[0])

    return _ESCAPE.sub(one, text[1:-1])
