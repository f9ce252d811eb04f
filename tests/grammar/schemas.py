"""Schemas within what is enforced, made up by a generator that always makes the same ones."""

import random
from typing import Any

LEAVES = ("string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format")
PATTERNS = ("^[a-c]{1,3}$", "^(x|yy)+z?$", r"^\d{2}:\d{2}$", "b+")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def schema(rng: random.Random) -> dict[str, Any]:
    """An object, with a recursive list beside it every fourth time."""
    whole = _object(rng, 2)
    if rng.random() < 0.25:
        link = {
            "type": "object",
            "properties": {"v": _any(rng, 0), "next": {"$ref": "#/$defs/link"}},
            "required": ["v"],
            "additionalProperties": False,
        }
        whole["properties"]["list"] = {"$ref": "#/$defs/link"}
        whole["$defs"] = {"link": link}
    return whole


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice((*LEAVES, "object", "array", "anyOf") if depth else LEAVES)
    if kind == "object":
        return _object(rng, depth - 1)
    if kind == "array":
        return _array(rng, depth - 1)
    if kind == "anyOf":
        return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    return _leaf(rng, kind)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = [f"k{n}" for n in range(rng.randint(1, 4))]
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }
    rest = rng.choice((False, False, None, {"type": "integer"}))
    if rest is not None:
        made["additionalProperties"] = rest
    if rng.random() < 0.2 and rest is None:
        made["patternProperties"] = {"^x-": {"type": "boolean"}}
    return made


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": _any(rng, depth)}
    least = rng.randint(0, 2)
    if rng.random() < 0.7:
        made |= {"minItems": least, "maxItems": least + rng.randint(0, 2)}
    if rng.random() < 0.3:
        made["prefixItems"] = [_any(rng, 0), _any(rng, 0)]
    return made


def _leaf(rng: random.Random, kind: str) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    match kind:
        case "string":
            return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": 6}
        case "integer":
            bounds = {"minimum": low, "exclusiveMaximum": low + rng.randint(1, 500)}
            return {"type": "integer"} | rng.choice((bounds, {"multipleOf": 3}))
        case "number":
            return {"type": "number", "exclusiveMinimum": low - 0.5, "maximum": low + 7.25}
        case "enum":
            return {"enum": rng.sample(["a", "b c", 'q"', 1, 2.5, None, True, [1, "x"], {}], 3)}
        case "const":
            return {"const": rng.choice(["only", 7, False, {"a": [1]}])}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        case "format":
            return {"type": "string", "format": rng.choice(FORMATS)}
    return {"type": kind}
