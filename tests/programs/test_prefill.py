"""One prefill call at a time: what it returns, which slots it opens, and what it leaves alone."""

import dataclasses

import jax
import numpy as np
import pytest

from tpuinfer.engine import inputs
from tpuinfer.engine.request import MAX_STOP_IDS
from tpuinfer.programs.closed_set import prefill_name
from tpuinfer.programs.output import unpack
from tpuinfer.programs.slots import SlotLayout
from tpuinfer.programs.state import zeros
from tpuinfer.testing import reference
from tpuinfer.testing.tiny import TINY, tiny

PROMPT = [3, 99, 7, 11, 2, 64, 5, 8, 13, 21, 34, 55, 89, 17, 6, 44]


def idle_input(rows, width):
    given = inputs.idle_input(SlotLayout((rows,), (width,)), rows, width)
    given.sampling.logprobs[:] = 0
    return given


def fill(given, row, prompt, *, slot, start=0, last=True, limit=5, stop=-1):
    given.tokens[row, : len(prompt)] = prompt
    given.slot[row] = slot
    given.start[row] = start
    given.length[row] = len(prompt)
    given.last[row] = last
    given.limit[row] = limit
    given.stops[row, 0] = stop
    given.sampling.seed[row] = 70 + slot


def marked_state(model):
    """A state in which every slot says something, and the rings hold NaN."""
    state = zeros(model.state)
    slots = state.token.shape[0]

    def fresh(old):
        junk = (
            np.nan if old.ndim == 4 else np.arange(1, slots + 1).reshape(-1, *[1] * (old.ndim - 1))
        )
        return jax.device_put(np.broadcast_to(junk, old.shape).astype(old.dtype), old.sharding)

    return jax.tree.map(fresh, state)


def no_tables(model):
    return zeros(model.tables)


def call(model, given, state=None):
    """The state after it, and the tokens [R] with their log-probabilities [R]."""
    rows, width = given.tokens.shape
    program = model.programs[prefill_name(rows // model.plan.slots.shards, width)]
    state = marked_state(model) if state is None else state
    after, out = program.call(model.params, state, no_tables(model), given)
    assert out.first.packed.shape == (1, rows, 2)
    tokens, logprobs, _, _ = unpack(np.asarray(out.first.packed), None)
    return jax.tree.map(np.asarray, after), tokens[0], logprobs[0]


def first_token(prompt):
    (token,), (logprob,) = reference.greedy(TINY, tiny(TINY).weights, prompt, 1)
    return token, logprob


@pytest.mark.parametrize("length", [1, 7, 8])
def test_the_first_token_is_sampled_where_the_prompt_ends(length):
    given = idle_input(1, 8)
    fill(given, 0, PROMPT[:length], slot=2)
    _, tokens, logprobs = call(tiny(TINY), given)
    token, logprob = first_token(PROMPT[:length])
    assert tokens.tolist() == [token]
    np.testing.assert_allclose(logprobs, [logprob], atol=1e-5)


def test_a_prompt_that_goes_on_gives_no_token_and_does_not_decode():
    given = idle_input(1, 16)
    fill(given, 0, PROMPT, slot=2, last=False)
    state, tokens, _ = call(tiny(TINY), given)
    assert tokens.tolist() == [-1]
    assert state.position.tolist() == [1, 2, 16, 4]
    assert state.live.tolist() == [True, True, False, True]


def test_what_a_slot_is_opened_with():
    given = idle_input(1, 8)
    fill(given, 0, PROMPT[:3], slot=2, limit=9, stop=123)
    given.sampling.temperature[0] = 0.25
    given.sampling.top_k[0] = 1
    given.sampling.choice[0] = 6
    state, tokens, _ = call(tiny(TINY), given)
    assert state.token.tolist() == [1, 2, int(tokens[0]), 4]
    assert state.position.tolist() == [1, 2, 3, 4]
    assert state.remaining.tolist() == [1, 2, 8, 4]
    assert state.live.tolist() == [True] * 4
    assert state.stops[:, 0].tolist() == [1, 2, 123, 4]
    assert state.stops[2, 1:].tolist() == [-1] * (MAX_STOP_IDS - 1)
    assert state.sampling.temperature.tolist() == [1, 2, 0.25, 4]
    assert state.sampling.top_k.tolist() == [1, 2, 1, 4]
    assert state.sampling.seed.tolist() == [1, 2, 72, 4]
    assert state.sampling.choice.tolist() == [1, 2, 6, 4]


@pytest.mark.parametrize(("limit", "stop"), [(1, -1), (5, "first token")])
def test_a_first_token_may_be_the_last(limit, stop):
    token, _ = first_token(PROMPT[:4])
    given = idle_input(1, 8)
    fill(given, 0, PROMPT[:4], slot=1, limit=limit, stop=token if stop == "first token" else stop)
    state, tokens, _ = call(tiny(TINY), given)
    assert tokens.tolist() == [token]
    assert not state.live[1]


def test_other_slots_and_columns_are_left_alone():
    given = idle_input(1, 16)
    fill(given, 0, PROMPT[:5], slot=2)
    state, _, _ = call(tiny(TINY), given)
    for (ring,) in state.rings:
        for array in (ring.keys, ring.values):
            written = np.isfinite(array).all(axis=(1, 3))
            assert np.argwhere(written).tolist() == [[2, column] for column in range(5)]
            assert np.isnan(array).sum() == array.size - 5 * array.shape[1] * array.shape[3]


def test_an_idle_call_changes_nothing():
    given = idle_input(1, 8)
    given.slot[0] = 2
    given.last[0] = True
    before = jax.tree.map(np.asarray, marked_state(tiny(TINY)))
    state, tokens, _ = call(tiny(TINY), given)
    assert tokens.tolist() == [-1]
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_what_the_padding_holds_does_not_matter():
    results = []
    for padding in (0, TINY.vocab - 1):
        given = idle_input(1, 16)
        given.tokens[:] = padding
        fill(given, 0, PROMPT[:5], slot=0)
        state, tokens, logprobs = call(tiny(TINY), given)
        results.append((state, tokens, logprobs))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_rows_of_two_shards_are_what_each_is_alone():
    """Other prompts, lengths and ends; one shard's chunk is not its prompt's last."""
    model = tiny(TINY, "2x4", buckets=(16,))
    both, alone = idle_input(2, 16), [idle_input(2, 16), idle_input(2, 16)]
    for given in (both, alone[0]):
        fill(given, 0, PROMPT[:9], slot=1)
    for given in (both, alone[1]):
        fill(given, 1, PROMPT, slot=2, last=False)
    state, tokens, logprobs = call(model, both)
    singles = [call(model, given) for given in alone]
    for row, slot in enumerate((1, 2)):
        lone, lone_tokens, lone_logprobs = singles[row]
        assert tokens[row] == lone_tokens[row]
        assert logprobs[row] == lone_logprobs[row] or tokens[row] == -1
        for (ring,), (other,) in zip(state.rings, lone.rings, strict=True):
            np.testing.assert_array_equal(ring.keys[slot], other.keys[slot])
            np.testing.assert_array_equal(ring.values[slot], other.values[slot])
    assert tokens[0] == first_token(PROMPT[:9])[0]
    assert tokens[1] == -1
    assert singles[0][1][1] == -1


def test_a_chunk_that_starts_later_reads_what_is_there():
    """The second chunk needs the first: with another one before it, the token's score differs."""
    model = tiny(TINY)
    scores = []
    for opening in (PROMPT, PROMPT[::-1]):
        first, second = idle_input(1, 16), idle_input(1, 8)
        fill(first, 0, opening, slot=3, last=False)
        fill(second, 0, PROMPT[:2], slot=3, start=16)
        state = zeros(model.state)
        state, _ = model.programs["prefill_1x16"].call(model.params, state, no_tables(model), first)
        _, tokens, logprobs = call(model, second, state)
        expected, logprob = first_token(opening + PROMPT[:2])
        assert tokens.tolist() == [expected]
        np.testing.assert_allclose(logprobs, [logprob], atol=1e-5)
        scores.append(float(logprobs[0]))
    assert scores[0] != scores[1]


def test_the_state_given_is_gone():
    model = tiny(TINY)
    given = idle_input(1, 8)
    state = marked_state(model)
    call(model, given, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(dataclasses.replace(state).rings))
