"""From the deltas of many requests to whole answers, in the order of the prompts. No jax."""

from collections.abc import Sequence

from tpuinfer.engine.request import CompletionOutput, Delta, Request, RequestOutput


class Gathered:
    """The answers to some prompts while they grow; each prompt has as many as it has requests."""

    def __init__(self, texts: Sequence[str | None], groups: Sequence[Sequence[Request]]) -> None:
        """`texts`: the prompts as text where they were, `groups`: the requests of each prompt."""
        self._prompt_of = {
            request.request_id: index for index, group in enumerate(groups) for request in group
        }
        self.outputs = [
            RequestOutput(
                group[0].request_id,
                text,
                list(group[0].prompt_token_ids),
                [CompletionOutput(request.choice) for request in group],
                False,
            )
            for text, group in zip(texts, groups, strict=True)
        ]

    def hear(self, delta: Delta) -> int:
        """Take in what is new; returns the index of the prompt that it is about."""
        index = self._prompt_of[delta.request_id]
        output = self.outputs[index]
        _extend(output.outputs[delta.choice], delta)
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
            output.prompt_top_logprobs = delta.prompt_top_logprobs
        output.finished = all(answer.finish_reason is not None for answer in output.outputs)
        return index


def _extend(answer: CompletionOutput, delta: Delta) -> None:
    answer.text += delta.text
    answer.token_ids += delta.token_ids
    if delta.logprobs is not None:
        if answer.logprobs is None:
            answer.logprobs, answer.cumulative_logprob = [], 0.0
        answer.logprobs += delta.logprobs
        answer.cumulative_logprob = (answer.cumulative_logprob or 0.0) + sum(delta.logprobs)
    if delta.top_logprobs is not None:
        answer.top_logprobs = (answer.top_logprobs or []) + delta.top_logprobs
    if delta.finish_reason is not None:
        answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
        answer.error = delta.error
