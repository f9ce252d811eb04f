"""The flags that say how tokens are picked, for the front doors that generate."""

import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from tpuinfer.errors import ConfigError
from tpuinfer.grammar.guide import Guide

_MAX_TOKENS = flags.DEFINE_integer("max-tokens", 256, "Most tokens to generate.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
_TOP_P = flags.DEFINE_float("top-p", 1.0, "Keep the smallest set with this probability.")
_TOP_K = flags.DEFINE_integer("top-k", 0, "Keep the k most likely tokens; 0 keeps all.")
_MIN_P = flags.DEFINE_float("min-p", 0.0, "Drop tokens less likely than this part of the best.")
_REPETITION = flags.DEFINE_float("repetition-penalty", 1.0, "Above 1: less of what was there.")
_PRESENCE = flags.DEFINE_float("presence-penalty", 0.0, "Off each token the answer already has.")
_FREQUENCY = flags.DEFINE_float("frequency-penalty", 0.0, "Likewise, as often as it has it.")
_MIN_TOKENS = flags.DEFINE_integer("min-tokens", 0, "Tokens before which no answer ends.")
_JSON_SCHEMA = flags.DEFINE_string("json-schema", None, "File with a schema for each answer.")
_REGEX = flags.DEFINE_string("regex", None, "Regular expression that each answer matches.")
_CHOICE = flags.DEFINE_list(
    "choice", [], "Texts that an answer may be, with commas: 'yes,no'; no other is."
)

_VALUES: dict[str, flags.FlagHolder[Any]] = {
    "max_tokens": _MAX_TOKENS,
    "temperature": _TEMPERATURE,
    "top_p": _TOP_P,
    "top_k": _TOP_K,
    "min_p": _MIN_P,
    "repetition_penalty": _REPETITION,
    "presence_penalty": _PRESENCE,
    "frequency_penalty": _FREQUENCY,
    "min_tokens": _MIN_TOKENS,
}

_GUIDES = (_JSON_SCHEMA, _REGEX, _CHOICE)


def values(*, present_only: bool = False) -> dict[str, Any]:
    """Name, as `SamplingParams` and a request's body have it -> value.

    Args:
      present_only: leave out what the command line does not say.
    """
    return {name: flag.value for name, flag in _VALUES.items() if flag.present or not present_only}


def guide() -> Guide | None:
    """What each answer must conform to.

    Raises:
      ConfigError: several are given, or a file cannot be read.
    """
    match _guide():
        case None:
            return None
        case "json-schema", str(schema):
            return Guide("json_schema", schema, "json-schema")
        case "regex", str(pattern):
            return Guide("regex", pattern, "regex")
        case name, texts:
            return Guide("choice", json.dumps(texts), name)


def guide_fields() -> dict[str, Any]:
    """The same, as fields of a request's body.

    Raises:
      ConfigError: as `guide`, or the schema is no JSON.
    """
    match _guide():
        case None:
            return {}
        case "json-schema", str(schema):
            try:
                return {"guided_json": json.loads(schema)}
            except ValueError as error:
                path = _JSON_SCHEMA.value
                raise ConfigError(f"json-schema is {path!r}: not JSON ({error})") from error
        case "regex", pattern:
            return {"guided_regex": pattern}
        case _, texts:
            return {"guided_choice": texts}


def present() -> list[str]:
    """The names of the flags here that the command line has."""
    return [flag.name for flag in (*_VALUES.values(), *_GUIDES) if flag.present]


def read_text(name: str, path: str) -> str:
    """What is in the file that the flag `name` gives.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        return Path(os.path.expanduser(path)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{name} is {path!r}: cannot be read ({why})") from error


def _guide() -> tuple[str, str | list[str]] | None:
    given = [flag for flag in _GUIDES if flag.value]
    if len(given) > 1:
        names = " and ".join(f"--{flag.name}" for flag in given)
        raise ConfigError(f"both {names} are given: give one")
    if _JSON_SCHEMA.value:
        return "json-schema", read_text("json-schema", _JSON_SCHEMA.value)
    if _REGEX.value:
        return "regex", _REGEX.value
    return ("choice", list(_CHOICE.value)) if _CHOICE.value else None
