"""A prompt from the fields of a row: text with {field} in it, and nothing else that means anything.

    "Translate to French: {text}"  with  {"text": "a cat"}  gives  "Translate to French: a cat"

`{{` and `}}` stand for braces. It is no format string: attributes, indices and conversions would
let a template reach into objects, so they are refused.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from tpuinfer.errors import ConfigError
from tpuinfer.offline.task import LineError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NO_NAME = re.compile(r"[.\[\]!:]")
_NAMES_SHOWN = 20
_NAME_CHARACTERS = 80
_BRACES = "write {{ and }} for braces that are text"


class Template:
    """A template that was read: its parts and the fields it wants.

    Attributes:
      fields: in the order in which they are first wanted.

    Raises:
      ConfigError: a brace without its partner, what is no plain {field}, or no field at all.
    """

    def __init__(self, text: str) -> None:
        self._texts, self._names = _parse(text)
        self.fields: Sequence[str] = tuple(dict.fromkeys(self._names))
        if not self.fields:
            raise ConfigError(
                f"template {_shown(text)} has no {{field}}: every row would be the same prompt"
            )

    def check(self, known: Sequence[str], where: str) -> None:
        """Refuse a field that no row of `where`, a file, will have.

        Raises:
          ConfigError: it names the field and the nearest that is known.
        """
        for name in self.fields:
            if name not in known:
                raise ConfigError(f"template: {no_field(name, known, where)}; {_BRACES}")

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of one row.

        Raises:
          LineError: a field that the row does not have, or that is no text.
        """
        parts = [self._texts[0]]
        for name, text in zip(self._names, self._texts[1:], strict=True):
            parts += (text_of(row, name), text)
        return "".join(parts)


def text_of(row: Mapping[str, Any], field: str) -> str:
    """A row's field as text: numbers and booleans as JSON writes them.

    Raises:
      LineError: the row does not have it, or it is null, a list or an object.
    """
    value = row.get(field)
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    if field not in row:
        message = no_field(field, row, "this row")
        raise LineError(message, code="missing_required_parameter", param=field)
    kind = {type(None): "null", dict: "an object"}.get(type(value), "a list")
    message = f"field {_shown(field)} is {kind}: it must be text, a number or a boolean"
    raise LineError(message, code="invalid_type", param=field)


def no_field(name: str, known: Iterable[str], where: str) -> str:
    """The words for a field that is not there: the nearest one, and those that are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {_shown(near[0])}?" if near else ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    listed = ", ".join(_shown(one) for one in names[:_NAMES_SHOWN]) or "no fields"
    return f"{where} has no field {_shown(name)}{hint} (it has {listed}{more})"


def _parse(text: str) -> tuple[list[str], list[str]]:
    """(texts, names): the names stand between the texts, of which there is one more.

    "{a}, {b}!"  ->  ["", ", ", "!"], ["a", "b"]
    """
    texts, names, end = [""], [], 0
    for token in _TOKEN.finditer(text):
        texts[-1] += text[end : token.start()]
        end = token.end()
        if token[0] in ("{{", "}}"):
            texts[-1] += token[0][0]
        elif token[1] is None:
            raise ConfigError(
                f"template: {token[0]!r} at character {token.start() + 1} has no partner; {_BRACES}"
            )
        else:
            names.append(_checked(token[1]))
            texts.append("")
    texts[-1] += text[end:]
    return texts, names


def _checked(name: str) -> str:
    if not name:
        raise ConfigError(f"template: {{}} names no field: write {{field}}; {_BRACES}")
    if found := _NO_NAME.search(name):
        raise ConfigError(
            f"template: {{{name[:_NAME_CHARACTERS]}}} is no plain {{field}}: no attribute, index, "
            f"conversion or format is known, and {found[0]!r} stands in no name; {_BRACES}"
        )
    return name


def _shown(text: str) -> str:
    return repr(text if len(text) <= _NAME_CHARACTERS else text[:_NAME_CHARACTERS] + "...")
