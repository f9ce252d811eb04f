"""How the served model writes: its tools, its reasoning, and what reads them back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tpuinfer.dialog.formats import Format, find_format
from tpuinfer.dialog.guides import guide_of
from tpuinfer.dialog.reader import Reader
from tpuinfer.dialog.tools import Tool, ToolChoice
from tpuinfer.dialog.turns import turns
from tpuinfer.grammar.guide import Guide
from tpuinfer.server.bridge import Bridge, Tokenizer
from tpuinfer.server.chat_body import ChatBody, NamedTool, ToolSpec
from tpuinfer.server.messages import Message
from tpuinfer.server.spoken import Spoken, call_ids

_TAIL = 16
"""Tokens at the end of a prompt that may say whether the answer begins with reasoning."""


class Speech:
    """The format of one bridge's model, by its chat template or by the names of parsers."""

    def __init__(
        self, bridge: Bridge, *, tool_parser: str | None = None, reasoning_parser: str | None = None
    ) -> None:
        self._bridge = bridge
        self._parsers = {"tool_parser": tool_parser, "reasoning_parser": reasoning_parser}
        self._found: tuple[Tokenizer, Format] | None = None

    @property
    def form(self) -> Format:
        """Raises ConfigError where a parser's name is none, and like `Bridge.tokenizer`."""
        tokenizer = self._bridge.tokenizer
        if self._found is None or self._found[0] is not tokenizer:
            source, controls = tokenizer.template_source, tokenizer.controls
            self._found = tokenizer, find_format(source, controls, **self._parsers)
        return self._found[1]

    def written(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> "Written":
        """A conversation for the model's template.

        Raises RequestError if there are tools, and how the model would call them is not known.
        """
        form = self.form
        if tools:
            form.check_tools()
        return Written(
            turns(form, [message.turn() for message in messages]),
            [_tool(tool).for_template() for tool in tools],
        )

    def is_plain(self, body: ChatBody) -> bool:
        """Whether all text of the answers is content. Raises like `form`."""
        form = self.form
        shows_nothing = not body.offered and form.thinking is None and form.style != "harmony"
        return shows_nothing or body.guide() is not None  # a guided text is content, all of it

    def heard(self, body: ChatBody, prompt: Sequence[int], answer: str) -> "Heard":
        """How the answers to `prompt` are read; ids of calls follow from `answer`, a unique name.

        Raises RequestError if calls are asked for that the format cannot hold.
        """
        if self.is_plain(body):
            return Heard()
        form, tokenizer = self.form, self._bridge.tokenizer
        tools = [_tool(tool) for tool in body.tools] if body.offered else []
        end = tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False)
        guide = guide_of(
            form, tools, _choice(body), parallel=body.parallel_tool_calls, prompt_end=end
        )
        reader = partial(Reader, form, [tool.name for tool in tools], prompt_end=end)
        many = body.parallel_tool_calls

        def spoken(choice: int) -> Spoken:
            ids = call_ids(f"{answer}-{choice}", short=form.short_ids)
            return Spoken(reader(new_id=ids), parallel=many)

        return Heard(guide, form.shown_controls, spoken)


@dataclass(frozen=True)
class Written:
    """What a chat template is given: messages in its shape, tools likewise."""

    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]

    def variables(self, *, add_generation_prompt: bool, more: Mapping[str, Any]) -> dict[str, Any]:
        """What it is told beside the messages; nothing that it would assume anyway."""
        told = dict(more)
        if self.tools:
            told["tools"] = self.tools
        if not add_generation_prompt:
            told["add_generation_prompt"] = False
        return told


@dataclass(frozen=True)
class Heard:
    """What becomes of an answer's text.

    Attributes:
      guide: what makes the answer call tools; None if it need not.
      shown_controls: control tokens that must stay in the text, to be read.
      spoken: makes a reader for a choice, by its number; None where all text is content.
    """

    guide: Guide | None = None
    shown_controls: Sequence[int] = ()
    spoken: Callable[[int], Spoken] | None = None


def _tool(spec: ToolSpec) -> Tool:
    function = spec.function
    return Tool(
        function.name, function.description or "", function.parameters or {}, bool(function.strict)
    )


def _choice(body: ChatBody) -> ToolChoice:
    match body.tool_choice:
        case NamedTool(function=function):
            return ToolChoice("named", function.name)
        case "required" | "none" as kind:
            return ToolChoice(kind)
        case _:
            return ToolChoice("auto")
