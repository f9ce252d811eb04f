"""What a client may send: OpenAI's request bodies, every field either honoured or refused.

A field that is not here is refused by name, unless its value asks for nothing: null for any
field, and the values of the tables below. pydantic's strict mode is on, so "5" is no
number and 1 no boolean.
"""

import difflib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Neutral = dict[str, tuple[Any, ...]]

_SHOWN = 40
"""Characters of a value that an error message quotes."""

_SAMPLING_NEUTRAL: Neutral = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_CHAT_NEUTRAL: Neutral = _SAMPLING_NEUTRAL | {
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: Neutral = _SAMPLING_NEUTRAL | {
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
}


def refusal(message: str, param: str, code: str) -> PydanticCustomError:
    """A complaint in our own words about the field `param` of what is being validated."""
    context = {"message": unicode_only(message), "param": unicode_only(param), "code": code}
    return PydanticCustomError("refused", "{message}", context)


def shown(value: object) -> str:
    """A value of a body as JSON has it, cut to a few characters."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def unicode_only(text: str) -> str:
    """JSON can spell half a character; a question mark stands for it in an answer."""
    return text.encode("utf-8", "replace").decode()


def _whole(text: str) -> str:
    """Refuse half a character, which no tokenizer could read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"character {error.start} is half of a surrogate pair: send valid Unicode"
        raise refusal(message, "", "invalid_unicode") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Int = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class StrictBody(BaseModel):
    """Refuses by name what it does not know, unless the value asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif value is not None:
                cls._require_neutral(name, value)
        return {name: value for name, value in kept.items() if value is not None}

    @classmethod
    def _require_neutral(cls, name: str, value: Any) -> None:
        if name not in cls.neutral:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise refusal(f"unknown parameter {name!r}: {hint}", name, "unknown_parameter")
        allowed = cls.neutral[name]
        if not any(_same(value, neutral) for neutral in allowed):
            hint = "leave it out" + "".join(f" or give {shown(one)}" for one in allowed)
            message = f"{name} is {shown(value)}: not supported yet; {hint}"
            raise refusal(message, name, "unsupported_parameter")


def _same(value: object, neutral: object) -> bool:
    """Equal as JSON: true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _worded(rule: str) -> WrapValidator:
    """One rule in words for a union, instead of one complaint per member."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            for entry in error.errors():
                if entry["type"] == "refused":
                    raise refusal(**entry["ctx"]) from None
            raise PydanticCustomError("invalid_type", "{rule}", {"rule": rule}) from None

    return WrapValidator(check)


class StreamOptions(StrictBody):
    """What a stream carries beside the answer."""

    neutral = {"include_obfuscation": (False,)}

    include_usage: bool = Field(False, description="End with a chunk that counts the tokens.")
    continuous_usage_stats: bool = Field(False, description="Count the tokens in every chunk.")


class SamplingBody(StrictBody):
    """The fields that chat and completions share; an absent one takes SamplingParams' default.

    `user` and `metadata` are labels for the caller: they ask nothing of the server.
    """

    model: Text
    max_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    stop: Annotated[Text | list[Text] | None, _worded("must be a string or a list of strings")] = (
        None
    )
    stop_token_ids: list[Int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options is set but stream is not: set stream to true, or leave it out"
            raise refusal(message, "stream_options", "invalid_value")
        return self


class TextPart(StrictBody):
    """A piece of a message's content; its other kinds are refused."""

    neutral = {"image_url": (), "input_audio": (), "file": (), "refusal": ()}

    type: Literal["text"]
    text: Text


class Message(StrictBody):
    """One turn of a chat; "developer" is OpenAI's newer name for "system"."""

    neutral = {
        "name": (),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Text | list[TextPart],
        _worded('must be a string or a list of {"type": "text", "text": ...} parts'),
    ]

    def turn(self) -> dict[str, str]:
        """Role and text as a chat template reads them; parts become lines."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(SamplingBody):
    """POST /v1/chat/completions. No limit on tokens means up to the context."""

    neutral = _CHAT_NEUTRAL

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Int | None = None
    logprobs: bool = False

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = f"max_tokens is {old} and max_completion_tokens is {new}: give one of them"
            raise refusal(message, "max_tokens", "invalid_value")
        return self


class CompletionBody(SamplingBody):
    """POST /v1/completions. No limit on tokens means 16, as OpenAI has it."""

    neutral = _COMPLETION_NEUTRAL

    prompt: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Int], Field(min_length=1)]
        | Annotated[list[list[Int]], Field(min_length=1)],
        _worded(
            "must be a string, a list of strings, a list of token ids, or a list of lists of "
            "token ids, and not an empty list"
        ),
    ]
    logprobs: Annotated[Int, Field(ge=0)] | None = None
    parse_special: bool = Field(
        False, description="Read control-token text in a prompt as tokens, not as plain text."
    )

    @model_validator(mode="after")
    def _chosen_tokens_only(self) -> Self:
        if self.logprobs:
            message = (
                f"logprobs is {self.logprobs}: alternatives to the chosen token are not "
                "supported yet; nearest: 0"
            )
            raise refusal(message, "logprobs", "unsupported_value")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one per choice of the answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [one for one in self.prompt if not isinstance(one, int)]
