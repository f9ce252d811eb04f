"""Windows, ring classes, sinks, several rows and few rows, in whole programs: the right tokens.

Programs are called through a runner whose rings begin as NaN.
"""

import jax
import numpy as np
import pytest
from windowed import SINKS, WINDOWED, rolls, stops

from tpuinfer.engine.request import SamplingParams
from tpuinfer.programs.state import zeros
from tpuinfer.testing import reference
from tpuinfer.testing.drive import GREEDY, run, works

HOT = SamplingParams(temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, seed=5, logprobs=20)
ALL = SamplingParams(temperature=0, logprobs=20)


def fresh(model):
    """A runner whose rings hold NaN, as a broken former tenant may leave them."""
    state = zeros(model.state)
    nan = jax.tree.map(lambda x: jax.device_put(x * np.nan, x.sharding), state.rings)
    return model.runner(state.replace(rings=nan))


def prompt_of(length, seed=0):
    return np.random.default_rng(seed + length).integers(1, WINDOWED.vocab, length).tolist()


def assert_greedy(model, prompts, limit_of):
    """Prompts {slot: length}, decoded together until each is `limit_of(capacity)` tokens long."""
    runner, layout = fresh(model), model.plan.slots
    given = {slot: prompt_of(length, slot) for slot, length in prompts.items()}
    total = {slot: limit_of(layout.capacity_of(slot)) for slot in prompts}
    rows = [
        works(runner, prompt, slot=slot, limit=total[slot] - len(prompt))
        for slot, prompt in given.items()
    ]
    for (slot, prompt), answer in zip(given.items(), run(runner, *rows, steps=4), strict=True):
        assert len(prompt) + len(answer.tokens) == total[slot]
        ring = reference.Ring(layout.capacity_of(slot), SINKS) if model.plan.rolls else None
        tokens, logprobs = reference.judge(WINDOWED, model.weights, prompt, answer.tokens, ring)
        assert answer.tokens == tokens, f"slot {slot}"
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-4)


def test_a_request_ends_at_its_capacity_right_to_the_last_token():
    """Prompts around a window and a chunk, in both classes; the ring is exactly full at the end."""
    short = {0: 1, 5: 31}
    long = {6: 39, 7: 40, 8: 41, 9: 63, 10: 64, 11: 65, 13: 79}
    assert_greedy(stops(), short | long, lambda capacity: capacity)


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_a_request_rolls_far_past_its_capacity(mesh):
    """A ring of 80 with four sinks; prompts below, at and beyond it, in several chunks.

    Beside them rows that just fill a ring of 32: who needs more is never there.
    """
    model = rolls(mesh)
    short, long = ((0, 1, 5), (6, 7, 8, 12, 13)) if mesh == "1" else ((0, 7, 8), (3, 6, 10, 12, 13))
    prompts = {
        **dict(zip(short, (1, 30, 31), strict=True)),
        **dict(zip(long, (3, 79, 80, 81, 150), strict=True)),
    }
    assert {model.plan.slots.capacity_of(slot) for slot in short} == {32}
    assert {model.plan.slots.capacity_of(slot) for slot in long} == {80}
    assert_greedy(model, prompts, lambda capacity: 32 if capacity == 32 else 200)


def test_sinks_and_the_place_from_which_they_are_seen_matter_to_the_reference():
    """Else agreeing with it would prove little."""
    weights, prompt = rolls().weights, prompt_of(100)

    def last(ring):
        return reference.log_softmax(reference.logits(WINDOWED, weights, prompt, ring))[-1]

    found = [last(ring) for ring in (None, reference.Ring(80), reference.Ring(80, SINKS))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[one] - found[other]).max() > 1e-2


MODELS = pytest.mark.parametrize(
    "make", [stops, rolls, lambda: rolls("2x4")], ids=["stops", "rolls", "rolls 2x4"]
)


def bits(result, slots):
    """Everything that slots got, as bytes."""
    kept = (result.tokens, result.logprobs, result.top_ids, result.top_logprobs)
    return [array[:, slots].tobytes() for array in kept]


def busy_slots(model, count):
    """Slots of both classes on every data shard, `count` each; the last ones first."""
    layout = model.plan.slots
    half = layout.per_shard // 2
    local = [layout.per_shard - 1, 0, half, 1][:count]
    return [shard * layout.per_shard + slot for shard in range(layout.shards) for slot in local]


@MODELS
def test_several_prompts_in_one_prefill_get_the_bits_they_get_alone(make):
    """Two chunks each, the second one beyond the window; four rows a shard, and three."""
    model = make()
    slots = busy_slots(model, 4)
    prompts = [
        works(
            model.runner(),
            prompt_of(14 if model.plan.slots.class_of(slot) == 0 else 66 + slot),
            slot=slot,
            params=HOT if slot % 2 else ALL,
        )
        for slot in slots
    ]
    alone, together = fresh(model), fresh(model)
    for chunk in (0, 1):
        items = [prompt[chunk] for prompt in prompts if len(prompt) > chunk]
        there = together.prefill(items).result()
        for item in items:
            one = alone.prefill([item], 1).result()
            if item.last:
                assert bits(one, item.slot) == bits(there, item.slot)
    # the rings hold the same bits too, columns that nobody wrote included
    for one, other in zip(
        jax.tree.leaves(alone._state), jax.tree.leaves(together._state), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@MODELS
def test_a_narrow_decode_gives_the_bits_of_the_full_one(make):
    model = make()
    slots = busy_slots(model, 4 if model.plan.slots.shards == 1 else 2)
    found = []
    for rows in (0, None):
        runner = fresh(model)
        for slot in slots:
            size = 50 if model.plan.slots.class_of(slot) else 13
            params = HOT if slot % 2 else ALL
            (work,) = works(runner, prompt_of(size, slot), slot=slot, params=params, limit=11)
            runner.prefill([work])
        results = [
            runner.decode(n, dict.fromkeys(order, n), rows).result() for n, order in schedule(slots)
        ]
        found.append(([bits(one, slots) for one in results], runner._state))
    assert found[0][0] == found[1][0]
    tokens = np.concatenate([one.tokens[:, slots] for one in results])
    assert ((tokens >= 0).sum(axis=0) == 10).all()
    for one, other in zip(*(jax.tree.leaves(state) for _, state in found), strict=True):
        np.testing.assert_array_equal(one, other)


def schedule(slots):
    """Steps, and who is named in which order; the last call finds all rows ended."""
    return [(4, slots), (1, slots[::-1]), (3, slots), (4, slots), (2, slots)]


@MODELS
def test_the_class_of_a_slot_changes_no_bit(make):
    """What fits a short ring may be given a longer one."""
    model = make()
    found = []
    for slot in (0, model.plan.slots.slots - 1):
        runner = fresh(model)
        rows = works(runner, prompt_of(14), slot=slot, params=ALL, limit=18)
        results = [
            runner.prefill(rows).result(),
            *(runner.decode(4, {slot: 4}, 0).result() for _ in range(5)),
        ]
        found.append([bits(one, [slot]) for one in results])
    assert {model.plan.slots.class_of(slot) for slot in (0, -1)} == {0, 1}
    assert found[0] == found[1]


@MODELS
def test_a_slot_that_a_narrow_decode_does_not_name_is_dead(make):
    model = make()
    runner, slots = fresh(model), busy_slots(model, 2)
    for slot in slots:
        (work,) = works(runner, prompt_of(9), slot=slot)
        runner.prefill([work])
    kept, dropped = slots[:1], slots[1:]
    before = jax.tree.map(np.array, runner._state.rings)
    result = runner.decode(1, dict.fromkeys(kept, 1)).result()
    assert np.flatnonzero(result.tokens[0] >= 0).tolist() == kept
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(runner._state.rings), strict=True):
        changed = (np.asarray(new) != old) & ~(np.isnan(new) & np.isnan(old))
        assert changed.sum() in (0, old.shape[1] * old.shape[3])
    assert (runner.decode(1, dict.fromkeys(slots, 1), 0).result().tokens[0, dropped] == -1).all()


def test_greedy_rows_beside_others_keep_their_bits():
    """The mix of a narrow decode is not that of the full one: what rows ask for is their own."""
    model = stops()
    runner = fresh(model)
    (alone,) = run(runner, works(runner, prompt_of(12), slot=3, params=GREEDY, limit=9), steps=4)
    for neighbours in (1, 3, 6):
        runner = fresh(model)
        others = [
            works(runner, prompt_of(11, slot), slot=slot, params=HOT, limit=9)
            for slot in (0, 13, 1, 6, 7, 8)[:neighbours]
        ]
        mine = works(runner, prompt_of(12), slot=3, params=GREEDY, limit=9)
        assert run(runner, *others, mine, steps=4)[-1] == alone
