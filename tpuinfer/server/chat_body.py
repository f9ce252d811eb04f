"""The body of POST /v1/chat/completions, tools and what its template is told included."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from tpuinfer.engine.request import TOP_LOGPROBS
from tpuinfer.server.fields import Neutral, Range, StrictBody, Text, few, refusal, shown, worded
from tpuinfer.server.messages import Message, Name
from tpuinfer.server.sampling_body import SAMPLING_NEUTRAL, Count, SamplingBody

MAX_TOOLS = 128
MAX_MESSAGES = 4096
MAX_VARIABLES = 16
"""Entries of `chat_template_kwargs`."""

TEMPLATE_NEUTRAL: Neutral = {
    "continue_final_message": (False,),
    "chat_template": (),
    "documents": (),
    "mm_processor_kwargs": (),
}
"""What vLLM's clients may send along with messages: no template comes from a request."""

_CHAT_NEUTRAL: Neutral = {
    **SAMPLING_NEUTRAL,
    **TEMPLATE_NEUTRAL,
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "add_special_tokens": (False,),
    "include_reasoning": (True,),
    "thinking_token_budget": (),
}

_RESERVED = re.compile(
    r"messages|tools|add_generation_prompt|documents|chat_template|continue_final_message"
    r"|strftime_now|.*_token"
)
"""What a template is told by the server, and by nobody else."""


class Function(StrictBody):
    """What a model may call. `parameters` is the JSON schema of its arguments."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(StrictBody):
    """One tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(StrictBody):
    name: Text


class NamedTool(StrictBody):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolMode = Annotated[
    Literal["none", "auto", "required"] | NamedTool,
    worded('must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'),
]


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if not re.fullmatch("[a-z][a-z0-9_]{0,63}", name) or _RESERVED.fullmatch(name):
            message = f"chat_template_kwargs has {shown(name)}: not for a request to set"
            raise refusal(message, unicode_name(name), "unsupported_parameter")
    return given


def unicode_name(name: str) -> str:
    """A name that a client made up, fit for an error's `param`."""
    return name if name.isidentifier() else ""


TemplateValue = bool | int | float | Annotated[Text, StringConstraints(max_length=256)]
TemplateKwargs = Annotated[
    dict[
        str,
        Annotated[
            TemplateValue,
            worded("must be a boolean, a number, or a string of at most 256 characters"),
        ],
    ],
    Field(max_length=MAX_VARIABLES),
    AfterValidator(_plain),
    few(MAX_VARIABLES),
]


class TemplatedBody(StrictBody):
    """Messages and what else a chat template reads."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] = Field([])
    add_generation_prompt: bool = Field(True, description="End with the opening of an answer.")
    chat_template_kwargs: TemplateKwargs = Field(
        {}, description="Variables of the model's template, such as enable_thinking."
    )

    @property
    def size(self) -> int:
        """Characters of all messages."""
        return sum(message.size for message in self.messages)


class ChatBody(TemplatedBody, SamplingBody):
    """POST /v1/chat/completions. No limit on tokens means up to the context."""

    neutral: ClassVar[Neutral] = _CHAT_NEUTRAL

    max_tokens: Count | None = Field(None, description="Up to the context if unset.")
    max_completion_tokens: Count | None = Field(None, description="max_tokens' newer name.")
    logprobs: bool = False
    top_logprobs: Annotated[int, Range(0, TOP_LOGPROBS)] = Field(
        0, description="The most likely tokens beside each one; with logprobs only."
    )
    tool_choice: ToolMode | None = Field(
        None, description='"auto" if there are tools; "none" leaves them out of the prompt.'
    )
    parallel_tool_calls: bool = Field(True, description="Whether an answer may call several tools.")
    reasoning_effort: Annotated[Text, StringConstraints(max_length=16)] | None = Field(
        None, description="For models whose template reads it."
    )

    @model_validator(mode="after")
    def _one_effort(self) -> Self:
        if self.reasoning_effort is not None and "reasoning_effort" in self.chat_template_kwargs:
            message = "reasoning_effort is set twice, also in chat_template_kwargs: give one"
            raise refusal(message, "reasoning_effort", "invalid_value")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = f"max_tokens is {old} and max_completion_tokens is {new}: give one of them"
            raise refusal(message, "max_tokens", "invalid_value")
        return self

    @model_validator(mode="after")
    def _top_of_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = (
                f"top_logprobs is {self.top_logprobs} and logprobs is not true: set logprobs to "
                "true, or leave top_logprobs out"
            )
            raise refusal(message, "top_logprobs", "invalid_value")
        return self

    @model_validator(mode="after")
    def _tools_that_there_are(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise refusal(f"tools has {twice!r} twice: give each once", "tools", "invalid_value")
        choice = self.tool_choice
        wanted = choice.function.name if isinstance(choice, NamedTool) else None
        if wanted is not None and wanted not in names:
            has = ", ".join(map(repr, names)) or "none"
            message = f"tool_choice names {shown(wanted)}: the tools given are {has}"
            raise refusal(message, "tool_choice", "invalid_value")
        if choice == "required" and not names:
            message = 'tool_choice is "required" and tools is empty: give some'
            raise refusal(message, "tool_choice", "invalid_value")
        if self.offered and (guide := self.guide()) is not None:
            message = (
                f"tools and {guide.param} are both set: a text cannot be both; give one of them, "
                'or tool_choice "none"'
            )
            raise refusal(message, guide.param, "invalid_value")
        return self

    @property
    def offered(self) -> bool:
        """Whether the model may call anything."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def limit(self) -> tuple[int | None, str]:
        """The most tokens asked for, and under which name."""
        if self.max_tokens is None and self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return self.max_tokens, "max_tokens"
