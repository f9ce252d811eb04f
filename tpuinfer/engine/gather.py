"""From the deltas of a prompt's requests to its whole answers. No jax."""

from collections.abc import Sequence

from tpuinfer.engine.request import CompletionOutput, Delta, Request, RequestOutput


class Gathered:
    """The answers to one prompt while they grow, one for each of its requests.

    Attributes:
      index: the prompt's place among those of its call.
      output: what has come so far.
    """

    def __init__(self, index: int, text: str | None, requests: Sequence[Request]) -> None:
        """`text`: the prompt as text where it was."""
        self.index = index
        self.output = RequestOutput(
            requests[0].request_id,
            text,
            list(requests[0].prompt_token_ids),
            [CompletionOutput(request.choice) for request in requests],
            False,
        )

    def hear(self, delta: Delta) -> None:
        """Take in what is new."""
        output = self.output
        _extend(output.outputs[delta.choice], delta)
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
            output.prompt_top_logprobs = delta.prompt_top_logprobs
        output.finished = all(answer.finish_reason is not None for answer in output.outputs)


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
