"""How models write tool calls and reasoning, as data, and which way a model writes.

Sources: the model cards, chat templates and prompt guides of Hermes, Qwen, SmolLM3, Llama 3 and 4,
Mistral, Granite and Phi-4-mini, and the harmony specification of gpt-oss.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tpuinfer.errors import ConfigError, RequestError

Style = Literal["none", "json", "named", "pythonic", "harmony"]


@dataclass(frozen=True)
class Format:
    """One way of writing.

    Attributes:
      name: what --tool-call-parser calls it; "plain" for a model that calls no tools.
      style: json: objects {"name", "arguments"}. named: Mistral's `name[ARGS]{...}`, or objects.
        pythonic: `f(a=1)`. harmony: messages in channels. none: no calls.
      opens: texts that announce calls.
      closes: texts that end what one of `opens` began.
      unmarked: an answer that begins like a call is one without a marker, if the tool exists.
      arguments_key: what the model calls the arguments in an object.
      listed: calls that are forced are written as a list in one place, not each in its own.
      thinking: the texts before and after reasoning; None = the model shows none.
      silent: texts that frame the content and are no part of it.
      short_ids: call ids are nine letters and digits, as the templates of Mistral want.
      controls: spelling -> id of those of these texts that are control tokens of the vocabulary.
    """

    name: str
    style: Style
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    unmarked: bool = False
    arguments_key: str = "arguments"
    listed: bool = False
    thinking: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    short_ids: bool = False
    controls: Mapping[str, int] = field(default_factory=dict)

    @property
    def shown_controls(self) -> tuple[int, ...]:
        """Ids that must stay in the text for a `Reader`: a request's `shown_controls`."""
        return tuple(self.controls.values())

    @property
    def calls_tools(self) -> bool:
        return self.style != "none"

    def check_tools(self) -> None:
        """
        Raises:
          RequestError: it is not known how the model writes calls.
        """
        if not self.calls_tools:
            raise RequestError(
                "tools: it is not known how this model writes tool calls; nearest: no tools, or a "
                f"server started with --tool-call-parser ({', '.join(TOOL_PARSERS)})",
                param="tools",
            )

    def opened(self, prompt_end: str) -> bool:
        """True if the prompt, of which this is the end, has opened the reasoning already."""
        return self.thinking is not None and prompt_end.rstrip().endswith(self.thinking[0])

    def closed(self, prompt_end: str) -> bool:
        """True if the prompt has closed the reasoning already: the answer shows none."""
        return self.thinking is not None and prompt_end.rstrip().endswith(self.thinking[1])


HARMONY_MARKS = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
)

TOOL_PARSERS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("hermes", "json", ("<tool_call>",), ("</tool_call>",)),
        Format(
            "llama3_json",
            "json",
            ("<|python_tag|>",),
            ("<|eom_id|>",),
            unmarked=True,
            arguments_key="parameters",
        ),
        Format("mistral", "named", ("[TOOL_CALLS]",), short_ids=True, listed=True),
        Format("granite", "json", ("<|tool_call|>", "<tool_call>"), ("</tool_call>",), listed=True),
        Format(
            "phi4_mini_json",
            "json",
            ("<|tool_call|>", "functools"),
            ("<|/tool_call|>",),
            listed=True,
        ),
        Format(
            "pythonic",
            "pythonic",
            ("<|python_start|>", "```tool_code"),
            ("<|python_end|>", "```"),
            unmarked=True,
            listed=True,
        ),
        Format("harmony", "harmony", HARMONY_MARKS),
    )
}

PLAIN = Format("plain", "none")

REASONING_PARSERS: dict[str, tuple[str, str] | None] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "none": None,
}

_ALSO = {"openai": "harmony", "llama4_pythonic": "pythonic", "llama4_json": "llama3_json"}
_ALSO_REASONING = {"deepseek_r1": "think", "qwen3": "think", "granite": "think"}

_OTHER_CALLS = re.compile(r"<function=|<parameter=|<arg_key>|tool▁calls")
"""Forms that are not read here, some of which share a marker with one that is."""


def find_format(
    template: str,
    controls: Mapping[str, int],
    *,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
) -> Format:
    """How the model with this chat template writes.

    Args:
      template: the source of the template for conversations with tools; empty if there is none.
      controls: the spelling of each control token of the vocabulary -> its id.
      tool_parser: a name in TOOL_PARSERS, or "plain", to use instead of what the template shows.
      reasoning_parser: likewise a name in REASONING_PARSERS.

    Raises:
      ConfigError: there is no parser of such a name.
    """
    if tool_parser is None:
        found = _of_template(template)
    else:
        known = {**TOOL_PARSERS, "plain": PLAIN}
        found = known[_named(tool_parser, known, _ALSO, "--tool-call-parser")]
    if found.style != "harmony":
        if reasoning_parser is None:
            thinking = _thinking(template)
        else:
            name = _named(
                reasoning_parser, REASONING_PARSERS, _ALSO_REASONING, "--reasoning-parser"
            )
            thinking = REASONING_PARSERS[name]
        found = replace(found, thinking=thinking)
    if found.thinking and "<response>" in template:
        found = replace(found, silent=("<response>", "</response>"))
    if found.name == "mistral" and ("[ARGS]" in template or "[ARGS]" in controls):
        found = replace(found, listed=False)
    marks = (*found.opens, *found.closes, *(found.thinking or ()), *found.silent)
    if found.style == "named":
        marks += ("[ARGS]", "[CALL_ID]")
    return replace(found, controls={mark: controls[mark] for mark in marks if mark in controls})


def _of_template(template: str) -> Format:
    if "<|channel|>" in template and "<|message|>" in template:
        return TOOL_PARSERS["harmony"]
    if "tools" not in template or _OTHER_CALLS.search(template):
        return PLAIN
    for mark, name in (
        ("[TOOL_CALLS]", "mistral"),
        ("<|/tool|>", "phi4_mini_json"),
        ("<|tool_call|>", "granite"),
        ("<tool_call>", "hermes"),
        ("<|python_start|>", "pythonic"),
        ("[func_name1(", "pythonic"),
        ("<|python_tag|>", "llama3_json"),
        ('"parameters": dictionary', "llama3_json"),
    ):
        if mark in template:
            return TOOL_PARSERS[name]
    return PLAIN


def _thinking(template: str) -> tuple[str, str] | None:
    for marks in REASONING_PARSERS.values():
        if marks is not None and (marks[0] in template or marks[1] in template):
            return marks
    return None


def _named(name: str, known: Mapping[str, object], also: Mapping[str, str], flag: str) -> str:
    name = also.get(name, name)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *also], n=1) or [next(iter(known))]
        raise ConfigError(
            f"{flag} is {name}: it must be one of {', '.join(known)}; nearest: {near[0]}"
        )
    return name
