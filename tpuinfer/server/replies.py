"""What the server sends when it does not stream: OpenAI's response bodies."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel

from tpuinfer.engine.request import Delta
from tpuinfer.server.intake import Job

LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; this is what OpenAI sends for it."""


class TokenTexts(Protocol):
    """The part of a tokenizer that shows single tokens."""

    def token_text(self, token_id: int, /) -> str: ...

    def token_bytes(self, token_id: int, /) -> bytes: ...


class Usage(BaseModel):
    """Tokens counted; a token that ended the text counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> "Usage":
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class TokenLogprob(BaseModel):
    """One chosen token; bytes are for tokens that are part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[int] = []


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """Parallel lists; an offset counts characters of the answer's tokens before this one."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tpuinfer"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: ErrorDetail


@dataclass
class Gathered:
    """One answer as its deltas add up."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


def chat_logprobs(
    tokenizer: TokenTexts, token_ids: Iterable[int], logprobs: Iterable[float]
) -> ChatLogprobs:
    """Log-probabilities of the chosen tokens in the chat endpoint's shape."""
    return ChatLogprobs(
        content=[
            TokenLogprob(
                token=tokenizer.token_text(token),
                logprob=max(logprob, LEAST_LOGPROB),
                bytes=list(tokenizer.token_bytes(token)),
            )
            for token, logprob in zip(token_ids, logprobs, strict=True)
        ]
    )


def completion_logprobs(
    tokenizer: TokenTexts, token_ids: Sequence[int], logprobs: Iterable[float], offset: int
) -> CompletionLogprobs:
    """Log-probabilities of the chosen tokens in the completions endpoint's shape.

    `offset` is the length in characters of the tokens sent before these.
    """
    tokens = [tokenizer.token_text(token) for token in token_ids]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[max(logprob, LEAST_LOGPROB) for logprob in logprobs],
        text_offset=offsets,
    )


def chat_reply(job: Job, gathered: Sequence[Gathered]) -> ChatCompletion:
    """The whole answer of /v1/chat/completions."""
    return ChatCompletion(
        id=job.answer_id,
        created=job.created,
        model=job.model,
        choices=[
            ChatChoice(
                index=index,
                message=ChatMessage(content=one.text),
                logprobs=chat_logprobs(job.tokenizer, one.token_ids, one.logprobs)
                if job.logprobs
                else None,
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
            )
            for index, one in enumerate(gathered)
        ],
        usage=_usage(job, gathered),
    )


def completion_reply(job: Job, gathered: Sequence[Gathered]) -> Completion:
    """The whole answer of /v1/completions, one choice per prompt."""
    return Completion(
        id=job.answer_id,
        created=job.created,
        model=job.model,
        choices=[
            CompletionChoice(
                index=index,
                text=one.text,
                logprobs=completion_logprobs(job.tokenizer, one.token_ids, one.logprobs, 0)
                if job.logprobs
                else None,
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
            )
            for index, one in enumerate(gathered)
        ],
        usage=_usage(job, gathered),
    )


def _usage(job: Job, gathered: Sequence[Gathered]) -> Usage:
    return Usage.of(job.prompt_tokens, sum(len(one.token_ids) for one in gathered))
