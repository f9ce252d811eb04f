"""Answers that are sent in one piece."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tpuinfer.engine.request import Delta, Request
from tpuinfer.server.bridge import Answers
from tpuinfer.server.job import Job, failed, merge
from tpuinfer.server.logprobs import Scored, chat_logprobs, completion_logprobs
from tpuinfer.server.spoken import message


async def gather(answers: Answers, requests: Sequence[Request]) -> list[Delta]:
    """All that came of each request as one delta, in their order.

    Raises ApiError if one of them failed.
    """
    asked = {request.request_id: request for request in requests}
    total = {request_id: Delta(request_id) for request_id in asked}
    async for deltas in answers:
        for delta in deltas:
            if delta.finish_reason == "error":
                raise failed(asked[delta.request_id], delta)
            merge(total[delta.request_id], delta)
    return list(total.values())


def completion_tokens(job: Job, gathered: Sequence[Delta]) -> int:
    """How many were generated, of those that were asked for."""
    return 0 if job.silent else sum(len(one.token_ids) for one in gathered)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Both counts and their sum."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_reply(job: Job, gathered: Sequence[Delta]) -> bytes:
    """The JSON of a whole answer of /v1/chat/completions."""
    choices = []
    for index, one in enumerate(gathered):
        spoken = job.spoken(index) if job.spoken is not None else None
        parts = [{"content": one.text}]
        if spoken is not None:
            parts = [*spoken.push(one.text), *spoken.finish()]
        called = spoken is not None and spoken.called
        scored = chat_logprobs(job.tokenizer, Scored.answer(one)) if job.logprobs else None
        choices.append(
            {
                "index": index,
                "message": message(parts),
                "logprobs": scored,
                **ending(one, called=called),
            }
        )
    return _encode(job, "chat.completion", choices, gathered)


def completion_reply(job: Job, gathered: Sequence[Delta]) -> bytes:
    """The JSON of a whole answer of /v1/completions."""
    choices = []
    for index, one in enumerate(gathered):
        text, scored = opened(job, index, one)
        shown = completion_logprobs(job.tokenizer, scored, 0) if job.logprobs else None
        choice = {"index": index, "text": text, "logprobs": shown}
        choices.append({**choice, **ending(one, silent=job.silent)})
    return _encode(job, "text_completion", choices, gathered)


def opened(job: Job, index: int, delta: Delta) -> tuple[str, Scored]:
    """Text and tokens of a completion's first delta, with the prompt before them if echoed."""
    text, scored = delta.text, Scored.answer(delta)
    if job.silent:
        text, scored = "", Scored((), (), None if scored.top is None else ())
    if job.echo is None:
        return text, scored
    prompt = Scored.prompt(job.requests[index].prompt_token_ids, delta)
    return job.echo[index] + text, prompt + scored


def ending(delta: Delta, *, called: bool = False, silent: bool = False) -> Mapping[str, Any]:
    """Why a choice ended. `called`: with tool calls. `silent`: before the token it had to have."""
    reason: str | None = delta.finish_reason
    if silent:
        return {"finish_reason": "length", "stop_reason": None}
    if called and reason == "stop":
        reason = "tool_calls"
    return {"finish_reason": reason, "stop_reason": delta.stop_reason}


def _encode(
    job: Job, kind: str, choices: Sequence[Mapping[str, Any]], gathered: Sequence[Delta]
) -> bytes:
    generated = completion_tokens(job, gathered)
    return orjson.dumps(
        {
            "id": job.answer_id,
            "object": kind,
            "created": job.created,
            "model": job.model,
            "choices": choices,
            "usage": usage(job.prompt_tokens, generated),
        }
    )
