"""From a validated body to engine requests: tokens, sampling parameters, constraints, limits."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tpuinfer.engine.request import Constraint, Request, SamplingParams
from tpuinfer.server.asked import Tokenizer
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.chat_body import ChatBody
from tpuinfer.server.completion_body import CompletionBody
from tpuinfer.server.guides import Guides
from tpuinfer.server.job import Job, Origin
from tpuinfer.server.prompts import Prompts
from tpuinfer.server.sampling_body import SamplingBody
from tpuinfer.server.speech import Heard, Speech

B = TypeVar("B", bound=SamplingBody)


class Intake:
    """Turns bodies into jobs for one bridge. Raises for what cannot be served as asked:

    ApiError, RequestError: with the parameter at fault. TokenizerError: the template refuses the
    messages. NotReadyError, EngineDeadError: there is no engine.
    """

    def __init__(self, bridge: Bridge, speech: Speech) -> None:
        self._bridge = bridge
        self._speech = speech
        self._prompts = Prompts(bridge)
        self._guides = Guides(bridge)

    async def chat(self, body: ChatBody, model: str, origin: Origin) -> Job:
        """A chat: one prompt, `n` choices."""
        self._bridge.require_decoder()
        tokenizer = self._bridge.tokenizer
        body = _seeded(body, origin)
        tools = body.tools if body.offered else ()
        written = self._speech.written(body.messages, tools)
        more: dict[str, Any] = dict(body.chat_template_kwargs)
        if body.reasoning_effort is not None:
            more["reasoning_effort"] = body.reasoning_effort
        if origin.clock is not None:
            more["strftime_now"] = origin.clock
        variables = written.variables(add_generation_prompt=body.add_generation_prompt, more=more)
        prompt = await self._prompts.of_chat(written.turns, body.size, variables)
        limit, limit_name = body.limit
        self._prompts.require_room(prompt, limit, "messages", limit_name)
        logprobs = body.top_logprobs if body.logprobs else None
        heard = Heard()
        if not self._speech.is_plain(body):
            heard = await asyncio.to_thread(self._speech.heard, body, prompt, origin.name)
        guide = heard.guide or body.guide()
        params = body.params(limit, limit_name, logprobs, guide=guide)
        constraints = await self._guides.constraints(guide, body.n)
        return _job(
            body,
            f"chatcmpl-{origin.name}",
            model,
            origin,
            _requests([prompt], params, constraints, heard.shown_controls),
            tokenizer=tokenizer,
            logprobs=body.logprobs,
            top=body.top_logprobs,
            spoken=heard.spoken,
        )

    async def completion(self, body: CompletionBody, model: str, origin: Origin) -> Job:
        """A completion: `n` choices for each prompt."""
        self._bridge.require_decoder()
        tokenizer = self._bridge.tokenizer
        body = _seeded(body, origin)
        texts = body.prompts()
        prompts = await self._prompts.of_texts(
            texts, add_special_tokens=body.add_special_tokens, parse_special=body.parse_special
        )
        for prompt in prompts:
            self._prompts.require_room(prompt, body.max_tokens, "prompt", "max_tokens")
        unset = body.max_tokens is None
        limit = SamplingParams().max_tokens if unset else max(body.max_tokens or 0, 1)
        guide = body.guide()
        scored = body.logprobs if body.echo else None
        params = body.params(
            limit, "max_tokens", body.logprobs, prompt_logprobs=scored, guide=guide
        )
        constraints = await self._guides.constraints(guide, len(prompts) * body.n)
        echo = None
        if body.echo:
            skip = body.skip_special_tokens
            echo = await asyncio.to_thread(_echoes, tokenizer, texts, body.n, skip)
        return _job(
            body,
            f"cmpl-{origin.name}",
            model,
            origin,
            _requests(prompts, params, constraints),
            tokenizer=tokenizer,
            logprobs=body.logprobs is not None,
            top=body.logprobs or 0,
            echo=echo,
            silent=body.max_tokens == 0,
        )

    async def again(self, request: Request, request_id: str) -> Request:
        """`request` afresh, to be answered from its beginning; for the same tokens.

        Raises like `Guides.constraints`.
        """
        [constraint] = await self._guides.constraints(request.params.guide, 1)
        return replace(request, request_id=request_id, constraint=constraint)


def _seeded(body: B, origin: Origin) -> B:
    """`body` with the seed of its origin, unless it has one."""
    if body.seed is not None or origin.seed is None:
        return body
    return body.model_copy(update={"seed": origin.seed})


def _echoes(
    tokenizer: Tokenizer, texts: Sequence[str | list[int]], n: int, skip_special_tokens: bool
) -> list[str]:
    """What stands before each answer, `n` for each prompt."""
    shown = [
        text
        if isinstance(text, str)
        else tokenizer.decode(text, skip_special_tokens=skip_special_tokens)
        for text in texts
    ]
    return [text for text in shown for _ in range(n)]


def _requests(
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    constraints: Sequence[Constraint | None],
    shown_controls: Sequence[int] = (),
) -> list[Request]:
    """One per choice, `params.n` for each prompt; `_job` gives them their names."""
    choices = [(prompt, choice) for prompt in prompts for choice in range(params.n)]
    return [
        Request("", prompt, params, choice, constraint, shown_controls)
        for (prompt, choice), constraint in zip(choices, constraints, strict=True)
    ]


def _job(
    body: SamplingBody,
    answer_id: str,
    model: str,
    origin: Origin,
    requests: Sequence[Request],
    **answer: Any,
) -> Job:
    for index, request in enumerate(requests):
        request.request_id = f"{answer_id}-{index}"
        request.background = origin.background
    options = body.stream_options
    return Job(
        answer_id=answer_id,
        model=model,
        requests=requests,
        created=origin.created,
        stream=body.stream,
        n=body.n,
        include_usage=options is not None and options.include_usage,
        usage_in_chunks=options is not None and options.continuous_usage_stats,
        **answer,
    )
