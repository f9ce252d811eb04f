"""The bodies that go out, as the OpenAPI document describes them.

Answers are built as plain dicts and encoded by orjson (`whole`, `stream`): these models say what is
in them, and the tests hold one against the other.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class Reply(BaseModel):
    """What is sent has the fields that are listed, and no other."""

    model_config = ConfigDict(extra="forbid")


class Usage(Reply):
    """Tokens counted; a token that ended the text counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Reply):
    """One token; bytes are for tokens that are part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprob]
    refusal: None


class NamedArguments(Reply):
    name: str
    arguments: str


class ToolCall(Reply):
    id: str
    type: Literal["function"]
    function: NamedArguments


class ChatMessage(Reply):
    """`reasoning_content` and `tool_calls` are there if the model reasoned, or called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(Reply):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(Reply):
    """Parallel lists; an offset counts characters of the answer's tokens before this one."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None


class Completion(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(Reply):
    """`max_model_len` is null where the context has no end, and, like `version`, while loading."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tpuinfer"
    root: str
    parent: None = None
    max_model_len: int | None
    version: int | None


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Tokenized(Reply):
    """`token_strs` is null unless asked for; `max_model_len` where the context has no end."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Reply):
    prompt: str


class Parameter(Reply):
    """What may be sent for one name; of what does not apply, nothing is said.

    `accepted`: of a parameter that is not supported, the values that ask for nothing. `above`: a
    lower bound that is not included. `minimum`, `maximum` are of numbers, `min_length` and
    `max_length` of strings, `min_items` and `max_items` of lists, `max_entries` of objects.
    """

    supported: bool
    accepted: list[Any] = []
    required: bool = False
    type: list[str] = []
    default: Any = None
    note: str = ""
    minimum: float | int | None = None
    above: float | int | None = None
    maximum: float | int | None = None
    values: list[Any] = []
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    max_entries: int | None = None


class Capabilities(Reply):
    """Path of an endpoint -> name of a parameter -> what may be sent for it."""

    object: Literal["capabilities"]
    model: str
    max_model_len: int | None
    endpoints: dict[str, dict[str, Parameter]]


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request cannot be served as asked."},
    "5XX": {"model": ErrorReply, "description": "The server cannot serve it now."},
}
"""What any route may answer beside what it is for."""
