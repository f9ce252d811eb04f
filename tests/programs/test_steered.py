"""Steered rows, quotas and prompt scores in whole programs: the right tokens, and the same bits."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from windowed import stops

from tpuinfer.engine.request import TOP_LOGPROBS, SamplingParams
from tpuinfer.testing import reference
from tpuinfer.testing.drive import GREEDY, run, works
from tpuinfer.testing.tiny import TINY, tiny

PROMPTS = [[3, 99, 7, 11, 2], [64], [5, 8, 13, 21, 34, 55, 89, 17], [*range(40, 77)]]
STEERED = SamplingParams(
    temperature=0,
    repetition_penalty=1.4,
    presence_penalty=0.3,
    frequency_penalty=0.6,
    logit_bias={7: 4.0, 64: -3.0},
    logprobs=0,
)
ALL_KINDS = dataclasses.replace(STEERED, temperature=0.9, seed=5, min_tokens=4, logprobs=20)


def words(allowed, vocab=TINY.vocab):
    bits = np.isin(np.arange(-(-vocab // 32) * 32), allowed)
    return np.packbits(bits, bitorder="little").view(np.int32)


def judged(model, prompt, answer, params, barred=(), allowed=None):
    """The greedy tokens of a steered row by the definition of each transform."""
    scores = reference.logits(TINY, model.weights, [*prompt, *answer[:-1]])[len(prompt) - 1 :]
    tokens = []
    for step, logits in enumerate(scores):
        said = answer[:step]
        for token in {*prompt, *said}:
            penalty = params.repetition_penalty
            logits[token] *= 1 / penalty if logits[token] > 0 else penalty
        for token in set(said):
            logits[token] -= params.presence_penalty + params.frequency_penalty * said.count(token)
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        if step < params.min_tokens:
            logits[list(barred)] = -np.inf
        if allowed is not None:
            logits[np.setdiff1d(np.arange(TINY.vocab), allowed)] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize(
    "one",
    [
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.0},
        {"logit_bias": {9: 6.0}},
        dataclasses.asdict(STEERED),
    ],
    ids=["repetition", "presence", "frequency", "bias", "all"],
)
def test_greedy_tokens_are_those_of_the_definition(one):
    """In every slot, after prompts of one and of several chunks, one of them in a used slot."""
    model = tiny(TINY)
    runner = model.runner()
    params = dataclasses.replace(GREEDY, **one)
    run(runner, works(runner, PROMPTS[3], slot=1, params=STEERED, limit=6))
    rows = [works(runner, p, slot=s, params=params, limit=10) for s, p in enumerate(PROMPTS)]
    plain = [works(runner, p, slot=s, limit=10) for s, p in enumerate(PROMPTS)]
    answers = run(runner, *rows, steps=4)
    assert [a.tokens for a in answers] != [a.tokens for a in run(runner, *plain, steps=4)]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.tokens == judged(model, prompt, answer.tokens, params)


@pytest.mark.parametrize("least", [1, 2, 5])
def test_ends_are_barred_until_there_are_enough_tokens(least):
    model = tiny(TINY)
    runner = model.runner()
    (free,) = run(runner, works(runner, PROMPTS[0], limit=9))
    ends = tuple(dict.fromkeys(free.tokens))
    params = dataclasses.replace(GREEDY, min_tokens=least)
    (answer,) = run(runner, works(runner, PROMPTS[0], limit=9, params=params, stop_ids=ends))
    assert answer.tokens == judged(model, PROMPTS[0], answer.tokens, params, ends)
    assert not set(answer.tokens[:least]) & set(ends)
    (now,) = run(runner, works(runner, PROMPTS[0], limit=9, stop_ids=ends))
    assert now.tokens == free.tokens[:1]


def test_a_mask_holds_for_its_slot_until_another_one_comes():
    model = tiny(TINY)
    runner = model.runner()
    allowed = [[5, 50, 127], [6, 60]]
    runner.constrain({1: words(allowed[0]), 2: words([9])})
    (work,) = works(runner, PROMPTS[0], slot=1, limit=9)
    (other,) = works(runner, PROMPTS[0], slot=2, limit=9)
    pending = [runner.prefill([dataclasses.replace(work, constrained=True)])]
    runner.prefill([other])
    runner.constrain({1: words(allowed[1])})
    pending += [runner.decode(1, {1: 1, 2: 1}) for _ in range(2)]
    results = [one.result() for one in pending]
    tokens = [int(result.tokens[0, 1]) for result in results]
    assert tokens[:1] == judged(model, PROMPTS[0], tokens[:1], GREEDY, allowed=allowed[0])
    assert tokens == [tokens[0], *judged(model, PROMPTS[0], tokens, GREEDY, allowed=allowed[1])[1:]]
    free = [int(result.tokens[0, 2]) for result in results[1:]]
    plain = run(model.runner(), works(runner, PROMPTS[0], limit=9))[0]
    assert free == plain.tokens[1:3]


def test_more_masks_than_one_call_takes():
    runner = stops().runner()
    slots = range(runner.layout.slots)
    runner.constrain({slot: words([slot + 1]) for slot in slots})
    for slot in slots:
        (work,) = works(runner, PROMPTS[0], slot=slot)
        runner.prefill([dataclasses.replace(work, constrained=True)])
    tokens = runner.decode(1, dict.fromkeys(slots, 1)).result().tokens[0]
    assert tokens.tolist() == [slot + 1 for slot in slots]


def everything(runner, quotas_of):
    """Bytes of all that four steered rows get, decoded with quotas from `quotas_of(slots)`."""
    said = {slot: [] for slot in range(4)}
    limits = {slot: 10 + slot for slot in said}
    for slot, prompt in enumerate(PROMPTS[:3] + PROMPTS[:1]):
        params = ALL_KINDS if slot % 2 else dataclasses.replace(GREEDY, logprobs=5)
        for work in works(
            runner, prompt, slot=slot, params=params, limit=limits[slot], choice=slot
        ):
            result = runner.prefill([work]).result()
        said[slot].append((result.tokens[0, slot], result.logprobs[0, slot]))
    for _ in range(200):
        if all(len(said[slot]) == limits[slot] for slot in said):
            return said
        result = runner.decode(4, quotas_of([*said])).result()
        for slot, got in said.items():
            made = result.tokens[:, slot] >= 0
            pairs = zip(result.tokens[made, slot], result.logprobs[made, slot], strict=True)
            got.extend(pairs)
    raise AssertionError(f"rows go on: { {slot: len(got) for slot, got in said.items()} }")


@pytest.mark.parametrize("make", [lambda: tiny(TINY), stops], ids=["full", "narrow too"])
def test_quotas_change_no_bit(make):
    whole = everything(make().runner(), lambda slots: dict.fromkeys(slots, 4))
    for seed in range(3):
        chance = random.Random(seed)
        found = everything(
            make().runner(), lambda slots, chance=chance: {s: chance.randint(0, 4) for s in slots}
        )
        assert found == whole


def test_a_row_takes_its_quota_and_one_of_0_waits():
    runner = tiny(TINY).runner()
    for slot in range(4):
        for work in works(runner, PROMPTS[2], slot=slot, limit=9):
            runner.prefill([work])
    made = (runner.decode(4, {0: 0, 1: 1, 2: 3}).result().tokens >= 0).sum(axis=0)
    assert made.tolist() == [0, 1, 3, 0]
    made = (runner.decode(4, {0: 4, 1: 4, 2: 4, 3: 4}).result().tokens >= 0).sum(axis=0)
    assert made.tolist() == [4, 4, 4, 0]


def scores(runner, prompts, rows=None, asked=TOP_LOGPROBS):
    """`PromptScores` of prompts {slot: tokens}, their chunks side by side: one array per part."""
    params = dataclasses.replace(GREEDY, prompt_logprobs=asked)
    chunks = {s: works(runner, p, slot=s, params=params) for s, p in prompts.items()}
    parts = {slot: [] for slot in prompts}
    for index in range(max(map(len, chunks.values()))):
        items = [own[index] for own in chunks.values() if len(own) > index]
        for slot, found in runner.prefill(items, rows).result().prompts.items():
            parts[slot].append((found.logprobs, found.top_ids, found.top_logprobs))
    return {slot: [np.concatenate(x) for x in zip(*p, strict=True)] for slot, p in parts.items()}


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_prompt_scores_are_those_of_the_reference(mesh):
    model = tiny(TINY) if mesh == "1" else tiny(TINY, mesh, buckets=(16,))
    runner = model.runner()
    for slot, prompt in enumerate(PROMPTS):
        logprobs, ids, tops = scores(runner, {slot: prompt})[slot]
        expected = reference.log_softmax(reference.logits(TINY, model.weights, prompt))[:-1]
        own = np.take_along_axis(expected, np.array(prompt[1:], int)[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(logprobs, own, atol=1e-5)
        assert ids.shape == tops.shape == (len(prompt) - 1, TOP_LOGPROBS)
        np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, :TOP_LOGPROBS])
        np.testing.assert_allclose(
            tops, np.sort(-expected, axis=1)[:, :TOP_LOGPROBS] * -1, atol=1e-5
        )


def test_prompt_scores_have_the_same_bits_in_every_company():
    """Alone, and four to a prefill, one of whose rows asks for nothing."""
    runner = stops().runner()
    prompts = {0: PROMPTS[2], 6: [*range(1, 71)], 8: PROMPTS[3], 13: [*range(60, 1, -1)]}
    together = scores(runner, prompts)
    for slot, prompt in prompts.items():
        for one, other in zip(scores(runner, {slot: prompt}, 1)[slot], together[slot], strict=True):
            assert one.tobytes() == other.tobytes()
    silent = works(runner, PROMPTS[0], slot=1)
    (work,) = works(
        runner, PROMPTS[3], slot=8, params=dataclasses.replace(GREEDY, prompt_logprobs=TOP_LOGPROBS)
    )
    found = runner.prefill([*silent, work]).result().prompts
    assert found.keys() == {8}
    assert found[8].logprobs.tobytes() == together[8][0].tobytes()


def test_fewer_of_the_most_likely_tokens_and_none():
    runner = tiny(TINY).runner()
    full, three, none = (scores(runner, {0: PROMPTS[2]}, asked=n)[0] for n in (TOP_LOGPROBS, 3, 0))
    assert full[0].tobytes() == three[0].tobytes() == none[0].tobytes()
    np.testing.assert_array_equal(three[1][:, :3], full[1][:, :3])
    assert (three[1][:, 3:] == -1).all()
    assert (none[1] == -1).all()
    assert runner.prefill(works(runner, PROMPTS[2])).result().prompts == {}


def test_asking_for_scores_changes_no_token():
    model = tiny(TINY)
    told, quiet = (
        run(model.runner(), works(model.runner(), PROMPTS[2], params=params))
        for params in (dataclasses.replace(GREEDY, prompt_logprobs=5), GREEDY)
    )
    assert told == quiet


def test_the_counts_of_a_slot_are_those_of_its_prompt_and_answer():
    model = tiny(TINY)
    runner = model.runner()
    (answer,) = run(runner, works(runner, PROMPTS[3], slot=2, params=STEERED, limit=9), steps=4)
    counts = np.asarray(jax.device_get(runner._state.counts))
    expected = np.zeros(TINY.vocab, int)
    expected[PROMPTS[3]] = 1
    np.add.at(expected, answer.tokens, 2)
    np.testing.assert_array_equal(counts[2], expected)
    assert not counts[[0, 1, 3]].any()
