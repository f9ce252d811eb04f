"""A request's tokens and log-probabilities are bit-identical, whatever else is running."""

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.testing.drive import Answer
from tpuinfer.testing.fake import FakeTokenizer
from tpuinfer.testing.tiny import ODD, TINY, Tiny, tiny

MODELS = {
    "1": lambda: tiny(TINY),
    "2x4": lambda: tiny(TINY, "2x4", buckets=(16,)),
    "8 odd": lambda: tiny(ODD, "8", buckets=(16,)),
    "1 bfloat16": lambda: tiny(TINY, dtype="bfloat16", buckets=(16,)),
}
VOCAB = ODD.vocab  # the smaller of the two


def asked(name: str, chance: random.Random) -> Request:
    """A request of its own name: prompts of 1 to 40 tokens, greedy or sampled in every way."""
    params = SamplingParams(
        temperature=chance.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=chance.choice([0, 0, 5]),
        top_p=chance.choice([1.0, 0.8]),
        min_p=chance.choice([0.0, 0.05]),
        seed=chance.randrange(2**32),
        max_tokens=chance.randint(1, 14),
        ignore_eos=chance.random() < 0.8,
        logprobs=0,
    )
    size = chance.choice([1, 3, 4, 5, 15, 16, 17, chance.randint(1, 40)])
    return Request(name, chance.choices(range(1, VOCAB), k=size), params, chance.randrange(2))


def engine_of(model: Tiny, steps: int = 1) -> Engine:
    tokenizer = FakeTokenizer(model.config.vocab, model.config.eos_ids)
    return Engine(model.runner(), tokenizer, steps=steps)


def serve(
    engine: Engine, requests: Sequence[Request], chance: random.Random | None = None
) -> dict[str, Answer]:
    """Answers to `requests` by name; they arrive all at once, or between steps as chance has it."""
    answers: defaultdict[str, Answer] = defaultdict(lambda: Answer([], []))
    waiting = list(requests)
    while waiting or engine.has_work:
        while waiting and (chance is None or chance.random() < 0.6):
            engine.add(waiting.pop(0))
        for delta in engine.step():
            answers[delta.request_id].tokens.extend(delta.token_ids)
            answers[delta.request_id].logprobs.extend(delta.logprobs or [])
    return {request.request_id: answers[request.request_id] for request in requests}


@pytest.mark.parametrize("name", MODELS)
def test_alone_under_load_and_in_another_order(name):
    model = MODELS[name]()
    chance = random.Random(5)
    requests = [asked(f"r{n}", chance) for n in range(14)]
    alone = {}
    for request in requests:
        alone |= serve(engine_of(model), [request])
    assert all(len(answer.tokens) == len(answer.logprobs) > 0 for answer in alone.values())
    assert serve(engine_of(model), requests) == alone
    for steps in (1, 4):
        chance.shuffle(requests)
        assert serve(engine_of(model, steps), requests, chance) == alone


def test_in_whichever_slot():
    """Slots are handed out in turn: the same request again and again visits all of them."""
    engine = engine_of(tiny(TINY))
    request = asked("again", random.Random(3))
    answers = []
    slots = []
    for _ in range(6):
        engine.add(request)
        deltas = engine.step()
        slots += [job.slot for job in engine._jobs.values()]
        while engine.has_work:
            deltas += engine.step()
        answers.append([(d.token_ids, d.logprobs) for d in deltas])
    assert answers == answers[:1] * 6
    assert len(set(slots)) == 4


def test_an_aborted_neighbour_and_a_slot_used_before():
    model = tiny(TINY)
    chance = random.Random(8)
    probe, *noise = (asked(f"r{n}", chance) for n in range(12))
    alone = serve(engine_of(model), [probe])["r0"]
    engine = engine_of(model)
    for request in noise:
        engine.add(request)
    for request in noise[::2]:
        engine.step()
        engine.abort(request.request_id)
    assert serve(engine, [probe], chance) == {"r0": alone}
