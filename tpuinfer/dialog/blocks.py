"""Readers of the calls that stand in one place of an answer, written as JSON.

A block takes text until its calls end, and never reads a character twice.
"""

import re
from collections.abc import Callable, Collection
from typing import Protocol

from tpuinfer.dialog.json_text import JsonFaultError, JsonScanner, parsed
from tpuinfer.dialog.pieces import CallArguments, CallStart, Piece

MAX_NAME = 256
"""Characters in the name of a tool."""

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "id", "type", "function", *_ARGUMENTS)
_NAME = re.compile(r"[\w.\-]*")


class NotACallError(Exception):
    """The text is no call; `given_back` is what was taken for one and belongs to the content."""

    def __init__(self, given_back: str, at: int) -> None:
        super().__init__(given_back)
        self.given_back = given_back
        self.at = at


class Calls:
    """The calls of one answer, numbered as they are found.

    Args:
      new_id: makes the id of a call that the model gave none.
      names: of the tools on offer; None = any.
    """

    def __init__(self, new_id: Callable[[], str], names: Collection[str] | None) -> None:
        self.pieces: list[Piece] = []
        self.count = 0
        self._new_id = new_id
        self._names = names

    def offers(self, name: str) -> bool:
        """True if there may be a tool of this name."""
        return self._names is None or name in self._names

    def start(self, name: str, call_id: str = "") -> None:
        self.pieces.append(CallStart(self.count, call_id or self._new_id(), name))
        self.count += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that started last."""
        if text:
            self.pieces.append(CallArguments(self.count - 1, text))

    def taken(self) -> list[Piece]:
        """What was found since the last time."""
        pieces, self.pieces = self.pieces, []
        return pieces


class Block(Protocol):
    """Reads calls from text that comes in parts.

    Attributes:
      done: the calls have ended.
    """

    done: bool

    def feed(self, text: str, at: int) -> int:
        """Take characters of `text` from index `at`; the index of the first one not taken.

        Raises:
          NotACallError: the text cannot go on as calls. What was found already stands.
        """

    def finish(self) -> str:
        """The text ends here: what was taken for part of a call and belongs to the content."""


class CallObject:
    """One call as an object: {"name": "f", "arguments": {...}}; "parameters" means the same.

    The arguments are given out as they come where the name stands before them. They may also be
    JSON text in a string. An object without a name, or with other arguments than an object, is no
    call.

    Args:
      sure: a marker announced the call. Otherwise its name must be a tool's, its arguments must be
        there, and it has no keys but those of calls.
    """

    def __init__(self, calls: Calls, sure: bool) -> None:
        self.done = False
        self._calls = calls
        self._sure = sure
        self._scanner = JsonScanner()
        self._raw: list[str] = []
        self._key: list[str] = []
        self._value: list[str] = []
        self._fields: dict[str, str] = {}
        self._started = False
        self._streaming = False

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and not self.done:
            begin, place = at, self._scanner.place
            try:
                out, at = self._scanner.step(text, at)
                if not self._started:
                    self._raw.append(text[begin:at])
                self._take(place, out)
            except (JsonFaultError, ValueError):
                raise NotACallError(self._left(), at) from None
        return at

    def finish(self) -> str:
        if self._started:
            self._calls.arguments(self._scanner.held)
            return ""
        return self._left()

    def _left(self) -> str:
        return self._scanner.held if self._started else "".join(self._raw)

    def _take(self, place: str, out: str) -> None:
        now = self._scanner.place
        if place == "key" and not self._scanner.done:
            self._key.append(out)
            if now != "key":
                self._check_key()
        elif place == "value":
            self._take_value(out)
            if now != "value":
                self._end_value()
        if self._scanner.done:
            self._end()

    def _name_of_key(self) -> str:
        return str(parsed("".join(self._key)))

    def _check_key(self) -> None:
        if not self._sure and self._name_of_key() not in _KEYS:
            raise ValueError("no key of a call")

    def _take_value(self, out: str) -> None:
        if self._streaming:
            self._calls.arguments(out)
            return
        if not self._value and not out.strip():
            return
        self._value.append(out)
        named = "name" in self._fields and not self._started
        if named and self._value == ["{"] and self._name_of_key() in _ARGUMENTS:
            self._start(self._fields["name"])
            self._calls.arguments("{")
            self._streaming = True

    def _end_value(self) -> None:
        if not self._started:
            key, value = self._name_of_key(), "".join(self._value)
            if key in ("name", "id") and value.startswith('"'):
                self._fields[key] = str(parsed(value))
                self._check_name(self._fields.get("name", "-"))
            elif key in _ARGUMENTS:
                self._fields["arguments"] = _object_text(value)
        self._key, self._value, self._streaming = [], [], False

    def _check_name(self, name: str) -> None:
        if not 0 < len(name) <= MAX_NAME or not (self._sure or self._calls.offers(name)):
            raise ValueError("no name of a tool")

    def _start(self, name: str) -> None:
        self._calls.start(name, self._fields.get("id", ""))
        self._started = True
        self._raw = []

    def _end(self) -> None:
        if not self._started:
            if "name" not in self._fields or not (self._sure or "arguments" in self._fields):
                raise ValueError("no call")
            self._start(self._fields["name"])
            self._calls.arguments(self._fields.get("arguments", "{}"))
        self.done = True


def _object_text(value: str) -> str:
    """The JSON text of an object, given as that, as a string that holds it, or as null."""
    content = parsed(value)
    if isinstance(content, str):
        value = content.strip()
        content = parsed(value)
    if content is None:
        return "{}"
    if not isinstance(content, dict):
        raise ValueError("arguments are no object")
    return value


class JsonCalls:
    """Calls as objects: one, several with blanks, commas or semicolons between, or a list."""

    def __init__(self, calls: Calls, sure: bool) -> None:
        self.done = False
        self._calls = calls
        self._sure = sure
        self._object: CallObject | None = None
        self._listed = False
        self._before: list[str] = []
        self._any = False

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and not self.done:
            if self._object is not None:
                at = self._inside(self._object, text, at)
            else:
                at = self._between(text, at)
        return at

    def finish(self) -> str:
        left = self._separator() + (self._object.finish() if self._object else "")
        self._before = []
        return left

    def _inside(self, one: CallObject, text: str, at: int) -> int:
        count = self._calls.count
        try:
            at = one.feed(text, at)
        except NotACallError as fault:
            raise NotACallError(self._separator() + fault.given_back, fault.at) from None
        if self._calls.count > count:
            self._before = []
        if one.done:
            self._object, self._any = None, True
        return at

    def _between(self, text: str, at: int) -> int:
        char = text[at]
        if char == "{":
            self._object = CallObject(self._calls, self._sure)
            return at
        if char == "[" and not self._any and not self._listed:
            self._listed = True
        elif char == "]" and self._listed:
            self.done = True
            self._before = []
            return at + 1
        elif not (char.isspace() or (self._any and char in ",;")):
            raise NotACallError(self._separator(), at)
        self._before.append(char)
        return at + 1

    def _separator(self) -> str:
        """What stands before the next call; blanks between calls mean nothing."""
        text = "".join(self._before)
        return text if not self._any or text.strip() else ""


class NamedCall:
    """One call as `name[ARGS]{...}`, with `[CALL_ID]id` before `[ARGS]` where there is one.

    The arguments may also follow the name at once.
    """

    def __init__(self, calls: Calls) -> None:
        self.done = False
        self._calls = calls
        self._head = ""
        self._scanner: JsonScanner | None = None

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and not self.done:
            if self._scanner is not None:
                at = self._arguments(self._scanner, text, at)
            elif text[at] == "{":
                self._begin(at)
            elif len(self._head) > 2 * MAX_NAME:
                raise NotACallError(self._head, at)
            else:
                self._head += text[at]
                at += 1
        return at

    def finish(self) -> str:
        if self._scanner is None:
            return self._head
        self._calls.arguments(self._scanner.held)
        return ""

    def _begin(self, at: int) -> None:
        head = self._head.strip().removesuffix("[ARGS]")
        name, _, call_id = head.partition("[CALL_ID]")
        name = name.strip()
        if not name or len(name) > MAX_NAME or not _NAME.fullmatch(name):
            raise NotACallError(self._head, at)
        self._calls.start(name, call_id.strip())
        self._scanner = JsonScanner()

    def _arguments(self, scanner: JsonScanner, text: str, at: int) -> int:
        try:
            out, at = scanner.step(text, at)
        except JsonFaultError:
            raise NotACallError(scanner.held, at) from None
        self._calls.arguments(out)
        self.done = scanner.done
        return at


class MistralCalls:
    """What follows [TOOL_CALLS]: a list of objects (tokenizers v3, v7) or a named call (v11)."""

    def __init__(self, calls: Calls) -> None:
        self.done = False
        self._calls = calls
        self._blanks: list[str] = []
        self._block: Block | None = None

    def feed(self, text: str, at: int) -> int:
        while at < len(text) and self._block is None:
            if text[at] in "[{":
                self._block = JsonCalls(self._calls, sure=True)
            elif not text[at].isspace():
                self._block = NamedCall(self._calls)
            else:
                self._blanks.append(text[at])
                at += 1
        if self._block is not None:
            count = self._calls.count
            try:
                at = self._block.feed(text, at)
            except NotACallError as fault:
                blanks = "".join(self._blanks) if self._calls.count == count else ""
                raise NotACallError(blanks + fault.given_back, fault.at) from None
            finally:
                if self._calls.count > count:
                    self._blanks = []
            self.done = self._block.done
        return at

    def finish(self) -> str:
        return "".join(self._blanks) + (self._block.finish() if self._block else "")
