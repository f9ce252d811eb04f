"""Decode: steps, ends, and slots that are dead, dropped or opened again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.engine.request import SamplingParams
from tpuinfer.ops.sampling import SamplingRows, sample
from tpuinfer.programs.compile import compile_programs
from tpuinfer.programs.state import zeros
from tpuinfer.testing import reference
from tpuinfer.testing.drive import GREEDY, run, works
from tpuinfer.testing.tiny import TINY, tiny

PROMPTS = [[3, 99, 7, 11, 2], [64], [5, 8, 13, 21, 34, 55, 89, 17], list(range(40, 60))]
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, top_k=40, seed=11, logprobs=0)


def poisoned():
    """An idle state whose rings hold NaN, as a broken former tenant may leave them."""
    state = zeros(tiny(TINY).state)
    nan = jax.tree.map(lambda x: jax.device_put(x * np.nan, x.sharding), state.rings)
    return state.replace(rings=nan)


def all_slots(runner, params=GREEDY, limit=9):
    return [
        works(runner, prompt, slot=slot, params=params, limit=limit + slot)
        for slot, prompt in enumerate(PROMPTS)
    ]


def test_greedy_tokens_and_logprobs_are_those_of_the_reference():
    model = tiny(TINY)
    runner = model.runner(poisoned())
    for prompt, answer in zip(PROMPTS, run(runner, *all_slots(runner)), strict=True):
        tokens, logprobs = reference.judge(TINY, model.weights, prompt, answer.tokens)
        assert answer.tokens == tokens
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-5)


def test_the_noise_of_a_token_is_that_of_its_position():
    """What is drawn for position p of seed and choice is `uniforms`' for it, from the first on."""
    model = tiny(TINY)
    runner = model.runner()
    params, prompt = SamplingParams(temperature=0.8, seed=2**32 - 5), PROMPTS[3]
    (answer,) = run(runner, works(runner, prompt, params=params, choice=3, limit=12), steps=4)
    logits = reference.logits(TINY, model.weights, prompt + answer.tokens)[len(prompt) - 1 : -1]
    one = np.ones(len(logits))
    rows = SamplingRows(
        temperature=np.float32(0.8 * one),
        top_p=np.float32(one),
        min_p=np.float32(0 * one),
        top_k=np.int32(0 * one),
        seed=np.uint32((2**32 - 5) * one),
        choice=np.int32(3 * one),
        logprobs=np.int32(-one),
        repetition=np.float32(one),
        presence=np.float32(0 * one),
        frequency=np.float32(0 * one),
        biased=one < 0,
        constrained=one < 0,
    )
    positions = np.arange(len(prompt), len(prompt) + len(logits), dtype=np.int32)
    assert answer.tokens == sample(jnp.asarray(logits, "float32"), rows, positions).tokens.tolist()
    others = sample(jnp.asarray(logits, "float32"), rows, positions + 1).tokens.tolist()
    assert answer.tokens != others


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_steps_of_a_dispatch_change_no_bit(params):
    runner = tiny(TINY).runner()
    one, two, four = (run(runner, *all_slots(runner, params), steps=n) for n in (1, 2, 4))
    assert one == two == four
    assert [len(answer.tokens) for answer in one] == [9, 10, 11, 12]


def test_a_program_for_one_step_gives_the_same_bits():
    """The platform's setting of steps is a matter of speed alone."""
    model, single = tiny(TINY), tiny(TINY, steps=1)
    (program,) = compile_programs([single.specs["decode"]]).values()
    runner = model.runner()
    many = run(runner, *all_slots(runner, SAMPLED), steps=4)
    runner = model.runner()
    runner.programs = {**model.programs, "decode": program}
    assert run(runner, *all_slots(runner, SAMPLED), steps=1) == many


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
def test_a_row_stops_at_its_limit(limit):
    runner = tiny(TINY).runner()
    (answer,) = run(runner, works(runner, PROMPTS[0], limit=limit), steps=4)
    (longer,) = run(runner, works(runner, PROMPTS[0], limit=8), steps=4)
    assert answer.tokens == longer.tokens[:limit]
    assert answer.logprobs == longer.logprobs[:limit]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_stop_id_is_returned_and_ends_the_row(steps):
    runner = tiny(TINY).runner()
    (free,) = run(runner, works(runner, PROMPTS[0], limit=12))
    ends = sorted({free.tokens.index(token) for token in free.tokens})
    assert len(ends) > 3
    for end in ends:
        stops = (126, free.tokens[end])
        assert 126 not in free.tokens
        (answer,) = run(runner, works(runner, PROMPTS[0], limit=12, stop_ids=stops), steps=steps)
        assert answer.tokens == free.tokens[: end + 1]


def test_rows_end_one_by_one_while_others_go_on():
    runner = tiny(TINY).runner()
    first = [works(runner, PROMPTS[0], slot=0, limit=3), works(runner, PROMPTS[1], slot=1, limit=6)]
    for work in (chunk for row in first for chunk in row):
        runner.prefill([work])
    result = runner.decode(4, {0: 4, 1: 4}).result()
    assert (result.tokens[:, :2] >= 0).tolist() == [[True, True]] * 2 + [[False, True]] * 2
    assert (result.tokens[:, 2:] == -1).all()
    result = runner.decode(4, {0: 4, 1: 4}).result()
    assert (result.tokens[:, 1] >= 0).tolist() == [True, False, False, False]


def test_a_slot_that_is_not_wanted_is_dead_until_it_is_opened_again():
    runner = tiny(TINY).runner()
    (whole,) = run(runner, works(runner, PROMPTS[2], slot=1))
    for slot, prompt in ((0, PROMPTS[3][:16]), (1, PROMPTS[2])):
        (work,) = works(runner, prompt, slot=slot)
        runner.prefill([work])
    without = runner.decode(2, {1: 2}).result().tokens[:2]
    assert (without[:, :2] >= 0).tolist() == [[False, True]] * 2
    again = runner.decode(2, {0: 2, 1: 2}).result().tokens[:2]
    assert (again[:, :2] >= 0).tolist() == [[False, True]] * 2
    assert again[:, 1].tolist() == whole.tokens[3:5]
    assert run(runner, works(runner, PROMPTS[2], slot=0)) == [whole]


def test_a_call_with_nobody_changes_no_slot():
    model = tiny(TINY)
    runner = model.runner(poisoned())
    before = jax.tree.map(np.asarray, runner._state)
    result = runner.decode(4, {}).result()
    assert (result.tokens == -1).all()
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, runner._state), before)


@pytest.mark.parametrize("prompt_length", [1, 40, 46, 47])
def test_a_row_may_fill_its_ring(prompt_length):
    """Prompt and answer together take the whole context; the last token is right."""
    model = tiny(TINY)
    prompt = np.random.default_rng(2).integers(1, TINY.vocab, prompt_length).tolist()
    runner = model.runner(poisoned())
    limit = model.plan.slots.capacity - prompt_length
    (answer,) = run(runner, works(runner, prompt, slot=2, limit=limit), steps=4)
    tokens, _ = reference.judge(TINY, model.weights, prompt, answer.tokens)
    assert len(tokens) == limit
    assert answer.tokens == tokens


def test_a_row_beyond_its_ring_sees_the_newest_columns():
    """The runner does not end a row at the capacity, the engine does: here a ring rolls on."""
    model = tiny(TINY)
    runner = model.runner()
    (answer,) = run(runner, works(runner, PROMPTS[0], limit=90), steps=4)
    ring = reference.Ring(model.plan.slots.capacity)
    tokens, _ = reference.judge(TINY, model.weights, PROMPTS[0], answer.tokens, ring)
    unbounded, _ = reference.judge(TINY, model.weights, PROMPTS[0], answer.tokens)
    assert answer.tokens == tokens != unbounded
