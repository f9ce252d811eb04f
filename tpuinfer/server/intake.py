"""From a validated body to engine requests: tokens, sampling parameters, limits.

Tokenising and templating are done on a worker thread: a long prompt must not hold up the streams
of others.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.errors import RequestError
from tpuinfer.server.bridge import Bridge, Tokenizer
from tpuinfer.server.failures import ApiError
from tpuinfer.server.protocol import ChatBody, CompletionBody, SamplingBody

_PASSED_ON = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
)


@dataclass(frozen=True)
class Job:
    """One HTTP request on its way: what to submit, and what its answer needs to know.

    Attributes:
      requests: one per choice of the answer, in order.
      usage_in_chunks: every chunk of a stream counts the tokens so far.

    """

    answer_id: str
    model: str
    requests: Sequence[Request]
    tokenizer: Tokenizer
    logprobs: bool
    stream: bool
    include_usage: bool
    usage_in_chunks: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt_token_ids) for request in self.requests)


async def chat_job(body: ChatBody, model: str, bridge: Bridge) -> Job:
    """Render and tokenise a chat.

    Raises:
      ApiError, RequestError: it cannot be served as asked.
      TokenizerError: the template refuses the messages.

    """
    tokenizer, context = bridge.tokenizer, bridge.context
    if not tokenizer.has_chat_template:
        message = (
            f"model {model!r} has no chat template: use /v1/completions, or start the server with "
            "--chat-template FILE"
        )
        raise ApiError(400, message, param="messages", code="unsupported_endpoint")
    turns = [message.turn() for message in body.messages]
    prompt = await asyncio.to_thread(tokenizer.encode_chat, turns)
    renamed = body.max_tokens is None and body.max_completion_tokens is not None
    limit_name = "max_completion_tokens" if renamed else "max_tokens"
    limit = body.max_completion_tokens if renamed else body.max_tokens
    _require_room(prompt, limit, context, "messages", limit_name)
    params = _params(body, limit, limit_name, 0 if body.logprobs else None)
    return _job(body, "chatcmpl", model, [prompt], params, tokenizer)


async def completion_job(body: CompletionBody, model: str, bridge: Bridge) -> Job:
    """Tokenise the prompts of a completion; raises like `chat_job`."""
    tokenizer, context = bridge.tokenizer, bridge.context
    texts = body.prompts()
    prompts = await asyncio.to_thread(_encode_all, tokenizer, texts, body.parse_special)
    for prompt in prompts:
        _require_room(prompt, body.max_tokens, context, "prompt", "max_tokens")
    limit = SamplingParams().max_tokens if body.max_tokens is None else body.max_tokens
    params = _params(body, limit, "max_tokens", body.logprobs)
    return _job(body, "cmpl", model, prompts, params, tokenizer)


def _encode_all(
    tokenizer: Tokenizer, texts: Sequence[str | list[int]], parse_special: bool
) -> list[list[int]]:
    return [
        tokenizer.encode(text, parse_special=parse_special) if isinstance(text, str) else text
        for text in texts
    ]


def _require_room(
    prompt: Sequence[int],
    limit: int | None,
    context: int | None,
    prompt_name: str,
    limit_name: str,
) -> None:
    """The prompt, and the tokens asked for in so many words, must fit into the context if any."""
    if context is None:
        return
    length = len(prompt)
    if length + 1 > context:
        message = (
            f"{prompt_name} has {length} tokens: the context is {context}, one of them for the "
            f"answer; nearest: {context - 1}"
        )
        raise ApiError(400, message, param=prompt_name, code="context_length_exceeded")
    if limit is not None and length + limit > context:
        message = (
            f"{limit_name} is {limit} and {prompt_name} has {length} tokens: together they "
            f"exceed the context of {context}; nearest {limit_name}: {context - length}"
        )
        raise ApiError(400, message, param=limit_name, code="context_length_exceeded")


def _params(
    body: SamplingBody, limit: int | None, limit_name: str, logprobs: int | None
) -> SamplingParams:
    """SamplingParams with the body's fields; those it leaves out keep their defaults."""
    given = {name: getattr(body, name) for name in _PASSED_ON}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return SamplingParams(max_tokens=limit, logprobs=logprobs, **given)
    except RequestError as error:
        if error.param != "max_tokens":
            raise
        message = str(error).replace("max_tokens", limit_name, 1)
        raise RequestError(message, param=limit_name) from None


def _job(
    body: SamplingBody,
    prefix: str,
    model: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    tokenizer: Tokenizer,
) -> Job:
    answer_id = f"{prefix}-{uuid.uuid4().hex}"
    options = body.stream_options
    return Job(
        answer_id=answer_id,
        model=model,
        requests=[
            Request(f"{answer_id}-{index}", prompt, params) for index, prompt in enumerate(prompts)
        ],
        tokenizer=tokenizer,
        logprobs=params.logprobs is not None,
        stream=body.stream,
        include_usage=options is not None and options.include_usage,
        usage_in_chunks=options is not None and options.continuous_usage_stats,
    )
