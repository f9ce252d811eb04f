"""JSON schemas: which keywords are enforced, and a check that nothing else is asked for.

The meaning is that of draft 2020-12 (json-schema.org/draft/2020-12). A keyword is enforced, an
annotation that restricts nothing, or refused by name; none is ignored.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tpuinfer.errors import RequestError

MAX_DEPTH = 64
"""Levels of brackets in a schema."""

FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
)
"""Values of `format` that are enforced."""

_SCHEMA, _SCHEMAS, _NAMED = "a schema", "a list of schemas", "an object of schemas"
_NUMBER, _COUNT, _TEXT, _NAMES = "a number", "a count", "a string", "a list of strings"
_LIST, _TYPES, _VALUE = "a list", "a type or a list of types", "any value"

ENFORCED: Mapping[str, str] = {
    "$defs": _NAMED,
    "$ref": _TEXT,
    "additionalProperties": _SCHEMA,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "const": _VALUE,
    "definitions": _NAMED,
    "enum": _LIST,
    "exclusiveMaximum": _NUMBER,
    "exclusiveMinimum": _NUMBER,
    "format": _TEXT,
    "items": _SCHEMA,
    "maxItems": _COUNT,
    "maxLength": _COUNT,
    "maxProperties": _COUNT,
    "maximum": _NUMBER,
    "minItems": _COUNT,
    "minLength": _COUNT,
    "minProperties": _COUNT,
    "minimum": _NUMBER,
    "multipleOf": _NUMBER,
    "oneOf": _SCHEMAS,
    "pattern": _TEXT,
    "patternProperties": _NAMED,
    "prefixItems": _SCHEMAS,
    "properties": _NAMED,
    "required": _NAMES,
    "type": _TYPES,
}
"""Keyword -> what its value must be."""

ANNOTATIONS = frozenset(
    {
        "$comment",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "example",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
"""Keywords that restrict nothing by the standard (or by OpenAPI's, whose two are common)."""

WHITESPACE = r" |\n[ \t]{0,24}"
"""Between the parts of a JSON text: nothing, one space, or a new line with its indent.

All that models and pretty-printers commonly write, but no blanks without end: without a bound, a
model that likes blanks never closes the object.
"""

_BOUNDED = {"whitespace_pattern": WHITESPACE}


def prepare(text: str, param: str) -> str:
    """The schema as llguidance takes it: checked, and with bounded whitespace.

    Raises:
      RequestError: `text` is no JSON schema, or one that is not enforced as a whole.
    """
    return with_spacing(read(text, param))


def read(text: str, param: str) -> dict[str, Any]:
    """The schema that a JSON text holds, checked as `check` does.

    Raises:
      RequestError: `text` is no JSON schema, or one that is not enforced as a whole.
    """
    return check(parse(text, param), param)


def parse(text: str, param: str) -> Any:
    """The value of a JSON text.

    Raises:
      RequestError: it is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RequestError(f"{param} is no valid JSON: {reason}", param=param) from None


def check_unicode(text: str, param: str) -> None:
    """Raise RequestError if `text` has a lone surrogate, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"{param} has a lone surrogate: it must be valid Unicode"
        raise RequestError(message, param=param) from None


def check(schema: Any, param: str) -> dict[str, Any]:
    """The schema as an object, without what names it.

    Raises:
      RequestError: it is no JSON schema, or not enforced as a whole.
    """
    if not isinstance(schema, (dict, bool)):
        message = f"{param} is a schema that is no object: it must be one, such as {{}}"
        raise RequestError(message, param=param)
    if schema is False:
        raise RequestError(f"{param} is false: no text conforms to it", param=param)
    whole = {} if schema is True else schema
    _Check(whole, param).whole()
    return {name: value for name, value in whole.items() if name not in ("$schema", "$id")}


def with_spacing(schema: Mapping[str, Any], spacing: Mapping[str, Any] | None = None) -> str:
    """A checked schema as llguidance takes it, with bounded whitespace or as `spacing` says."""
    spacing = spacing or {}
    bound = {} if spacing.get("whitespace_flexible") is False else _BOUNDED
    return json.dumps({**schema, "x-guidance": {**bound, **spacing}})


class _Check:
    """One pass over a schema; unsupported keywords are collected and named together."""

    def __init__(self, root: Mapping[str, Any], param: str) -> None:
        self._root = root
        self._param = param
        self._unknown: dict[str, str] = {}

    def whole(self) -> None:
        if _deeper(self._root, MAX_DEPTH):
            self._refuse(f"{self._param} has a schema of more than {MAX_DEPTH} levels of brackets")
        drafts = ("draft-06", "draft-07", "2019-09", "2020-12")
        stated = self._root.get("$schema", drafts[-1])
        if not (isinstance(stated, str) and any(draft in stated for draft in drafts)):
            self._refuse(
                f"$schema is {json.dumps(stated)[:100]}: schemas are read as draft 2020-12; "
                "nearest: leave it out"
            )
        self._schema(
            {name: value for name, value in self._root.items() if name not in ("$schema", "$id")},
            "#",
        )
        if self._unknown:
            names = ", ".join(sorted(self._unknown))
            self._refuse(
                f"the schema has {names} (first at {next(iter(self._unknown.values()))}): these "
                "keywords are not enforced; nearest: leave them out and check the answer for them"
            )

    def _schema(self, schema: Any, where: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            self._refuse(f"the schema at {where} must be an object or a boolean")
        for name, value in schema.items():
            here = f"{where}/{name}"
            if name in ENFORCED:
                self._value(ENFORCED[name], value, here)
            elif name not in ANNOTATIONS and (not name.startswith("x-") or name == "x-guidance"):
                self._unknown.setdefault(name, here)
        if "$ref" in schema:
            self._reference(schema["$ref"], f"{where}/$ref")
        if schema.get("format", "date") not in FORMATS:
            self._refuse(
                f"format {json.dumps(schema['format'])[:100]} at {where} is not enforced; it must "
                f"be one of: {', '.join(sorted(FORMATS))}"
            )
        self._least_properties(schema, where)

    def _value(self, kind: str, value: Any, where: str) -> None:
        if not _is(kind, value):
            hint = "; nearest: prefixItems" if where.endswith("/items") else ""
            self._refuse(f"the value at {where} must be {kind}{hint}")
        for name, inner in _inner(kind, value):
            self._schema(inner, f"{where}/{name}" if name else where)

    def _reference(self, target: str, where: str) -> None:
        if target != "#" and not target.startswith("#/"):
            self._refuse(
                f"{target[:100]!r} at {where}: nothing is fetched from a URL, and a reference must "
                "be # or begin with #/, such as #/$defs/name"
            )

    def _least_properties(self, schema: Mapping[str, Any], where: str) -> None:
        """Names outside `properties` may repeat, so that at most one of them can be counted."""
        countable = len(set(schema.get("required", ()))) + 1
        if schema.get("minProperties", 0) > countable:
            self._refuse(
                f"minProperties at {where} is {schema['minProperties']}: that names differ is "
                f"enforced for those that are required only; nearest: {countable}, or name more "
                "of them in required"
            )

    def _refuse(self, message: str) -> None:
        raise RequestError(message, param=self._param)


def _is(kind: str, value: Any) -> bool:
    """Whether a value is what its keyword asks for."""
    if kind in (_SCHEMAS, _NAMES, _LIST):
        strings = kind == _NAMES
        return isinstance(value, list) and not (
            strings and not all(isinstance(one, str) for one in value)
        )
    if kind == _NUMBER:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == _COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind == _TYPES:
        types = value if isinstance(value, list) else [value]
        return bool(types) and all(isinstance(one, str) for one in types)
    wanted: dict[str, tuple[type, ...]] = {_TEXT: (str,), _NAMED: (dict,), _SCHEMA: (dict, bool)}
    return isinstance(value, wanted.get(kind, (object,)))


def _inner(kind: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas within a keyword's value, and where in it they are."""
    if kind == _SCHEMA:
        yield "", value
    elif kind == _NAMED:
        yield from value.items()
    elif kind == _SCHEMAS:
        yield from ((str(place), one) for place, one in enumerate(value))


def _deeper(value: Any, levels: int) -> bool:
    """Whether brackets nest more than `levels` deep."""
    row = [value]
    for _ in range(levels + 1):
        row = [
            inner
            for one in row
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not row:
            return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
