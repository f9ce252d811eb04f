"""Grammars in Lark's syntax, as requests write them: checks, and the schemas within them."""

import json
import re

from tpuinfer.errors import RequestError
from tpuinfer.grammar import schema

HEADER = '%llguidance {"no_forcing": true} '
"""Masks hold every token that keeps the text conforming, not the usual spelling alone."""

_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_OPTIONS = re.compile(r"^[ \t]*[?!]?[\w.-]+\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
_REFUSED_OPTION = re.compile(r"\b(temperature|max_tokens|stop|stop_capture)\b")
_SCHEMA = re.compile(r"%json\s*(?=[{\[\"tf])")
_SPACING = {"item_separator", "key_separator", "whitespace_flexible", "whitespace_pattern"}
_DIRECTIVE = re.compile(r"^[ \t]*%llguidance\b", re.MULTILINE)


def prepare(text: str, param: str) -> str:
    """The grammar as llguidance takes it; schemas after %json are checked like any other.

    Raises:
      RequestError: it is in another syntax (GBNF), sets options that would be ignored, or holds a
        schema that is not enforced as a whole.
    """
    if _GBNF_RULE.search(text):
        raise RequestError(
            f"{param} has rules of the form name ::= ... (GBNF): it must be in Lark's syntax; "
            'nearest: start: "yes" | "no"',
            param=param,
        )
    if _DIRECTIVE.search(text):
        raise RequestError(f"{param} has %llguidance: options are set by the server", param=param)
    for options in _OPTIONS.finditer(text):
        if refused := _REFUSED_OPTION.search(options[1]):
            raise RequestError(
                f"{param} has a rule with {refused[1]}: it is not honoured; nearest: a rule "
                "without it, or lazy or suffix=... to end at a text",
                param=param,
            )
    return HEADER + _with_schemas(text, param)


def _with_schemas(text: str, param: str) -> str:
    decoder = json.JSONDecoder()
    parts, done = [], 0
    while found := _SCHEMA.search(text, done):
        try:
            value, end = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise RequestError(f"{param} has %json without JSON: {reason}", param=param) from None
        parts += [text[done : found.end()], _schema(value, param)]
        done = end
    return "".join(parts) + text[done:]


def _schema(value: object, param: str) -> str:
    """A schema within a grammar; it may say how it is spaced, and nothing else of its options."""
    spacing = None
    if isinstance(value, dict) and isinstance(value.get("x-guidance"), dict):
        spacing = value["x-guidance"]
        if odd := sorted(set(spacing) - _SPACING):
            raise RequestError(
                f"{param} has a schema with the option {odd[0]}, which must not be set; those that "
                f"may: {', '.join(sorted(_SPACING))}",
                param=param,
            )
        value = {name: inner for name, inner in value.items() if name != "x-guidance"}
    return schema.with_spacing(schema.check(value, param), spacing)


def rule_of_schema(prepared: str) -> str:
    """A grammar of JSON texts that conform to a schema from `schema.prepare`."""
    return f"{HEADER}start: %json {prepared}\n"


def rule_of_choices(choices: list[str]) -> str:
    """A grammar of exactly these texts."""
    spelled = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return f"{HEADER}start: CHOICE\nCHOICE: {spelled}\n"
