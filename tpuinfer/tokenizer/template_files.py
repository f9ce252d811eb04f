"""Where a checkpoint keeps its chat templates: which file or key wins, and the one for tools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpuinfer.errors import TokenizerError
from tpuinfer.tokenizer.template import ChatTemplate

_TOOL_USE = "tool_use"
"""Hugging Face's name for the template of conversations that offer tools."""


@dataclass(frozen=True)
class Templates:
    """What renders messages.

    Attributes:
      plain: for conversations; None where the model has none.
      tools: for conversations that offer tools; None = `plain` renders them too.
    """

    plain: ChatTemplate | None = None
    tools: ChatTemplate | None = None


def read_templates(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, str], override: Path | None
) -> Templates:
    """The templates of the checkpoint in `folder`.

    In order: `override`; `chat_template.jinja`, with `additional_chat_templates/tool_use.jinja`
    beside it; `chat_template` in tokenizer_config.json, a string or a list of {name, template};
    `chat_template.json`.

    Args:
      config: the contents of tokenizer_config.json.
      special: "bos_token", ... -> text.
      override: a file with the one template to use instead.

    Raises:
      TokenizerError: a file cannot be read or is no template, or a list names no default.
    """
    if override is not None:
        return Templates(ChatTemplate(_read(override), special, f"chat-template {override}"))
    found: dict[str, str] = {}
    alone = folder / "chat_template.jinja"
    with_tools = folder / "additional_chat_templates" / f"{_TOOL_USE}.jinja"
    if alone.is_file():
        found["default"] = _read(alone)
        if with_tools.is_file():
            found[_TOOL_USE] = _read(with_tools)
    elif config.get("chat_template") is not None:
        found = _named(config["chat_template"])
    elif (folder / "chat_template.json").is_file():
        found = _named(_of_processor(folder / "chat_template.json"))
    if not found:
        return Templates()
    tools = found.get(_TOOL_USE)
    return Templates(
        ChatTemplate(found["default"], special),
        None if tools is None else ChatTemplate(tools, special, f"chat template {_TOOL_USE}"),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TokenizerError(f"chat template {path}: cannot be read ({why})") from error


def _of_processor(path: Path) -> Any:
    """The template in the file that Hugging Face's processors write: {"chat_template": ...}."""
    try:
        return json.loads(_read(path))["chat_template"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path}: it must be an object with a chat_template") from error


def _named(value: Any) -> dict[str, str]:
    """Name -> template, of a string (the default) or a list of {name, template}."""
    if isinstance(value, str):
        return {"default": value}
    try:
        named = {entry["name"]: str(entry["template"]) for entry in value}
    except (KeyError, TypeError) as error:
        raise TokenizerError(
            "chat_template must be a string or a list of {name, template}"
        ) from error
    if "default" not in named:
        raise TokenizerError(
            f"chat_template names {', '.join(map(str, named)) or 'nothing'}; one must be 'default'"
        )
    return named
