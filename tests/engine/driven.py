"""An engine on the fake runner, driven by hand."""

from typing import Any

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import CompletionOutput, Request, SamplingParams
from tpuinfer.testing.fake import FakeRunner, FakeTokenizer

Slots = int | tuple[tuple[int, int], ...]


def engine(
    slots: Slots = 2,
    *,
    steps: int = 1,
    max_waiting: int = 100,
    prefill_wait: float = 0,
    **runner: Any,
) -> Engine:
    return Engine(
        FakeRunner(slots, **runner),
        FakeTokenizer(),
        steps=steps,
        max_waiting=max_waiting,
        prefill_wait=prefill_wait,
    )


def ask(name: str, prompt: str, choice: int = 0, **params: Any) -> Request:
    params = {"temperature": 0, "max_tokens": 4, **params}
    return Request(name, FakeTokenizer().encode(prompt), SamplingParams(**params), choice)


def step(one: Engine, answers: dict[str, CompletionOutput]) -> list[str]:
    """One step; what it says is added to the answers. Returns who was named."""
    deltas = one.step()
    for delta in deltas:
        answer = answers.setdefault(delta.request_id, CompletionOutput(0))
        assert answer.finish_reason is None, f"{delta.request_id} finished before"
        answer.text += delta.text
        answer.token_ids += delta.token_ids
        answer.finish_reason, answer.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.logprobs is not None:
            answer.logprobs = (answer.logprobs or []) + delta.logprobs
        if delta.top_logprobs is not None:
            answer.top_logprobs = (answer.top_logprobs or []) + delta.top_logprobs
    return [delta.request_id for delta in deltas]


def run(one: Engine, *requests: Request) -> dict[str, CompletionOutput]:
    answers: dict[str, CompletionOutput] = {}
    for request in requests:
        one.add(request)
    for _ in range(1000):
        step(one, answers)
    assert not one.has_work
    assert all(answer.finish_reason for answer in answers.values())
    return answers
