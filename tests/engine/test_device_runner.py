"""The runner over real programs: its contract, its refusals, and no compile after warm-up."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.engine.request import MAX_STOP_IDS, SamplingParams
from tpuinfer.testing.drive import GREEDY, run, works
from tpuinfer.testing.tiny import TINY, tiny

PROMPT = [3, 99, 7, 11, 2]
OTHER = list(range(40, 60))


@pytest.fixture
def runner():
    return tiny(TINY).runner()


@pytest.fixture
def sharded():
    return tiny(TINY, "2x4", buckets=(16,)).runner()


def test_what_it_says_of_itself(runner, sharded):
    assert (runner.slots, runner.shards, runner.capacity) == (4, 1, 64)
    assert (runner.chunk, runner.buckets) == (16, (4, 16))
    assert (sharded.slots, sharded.shards, sharded.chunk) == (4, 2, 16)
    assert runner.programs.keys() == {"decode", "prefill_4", "prefill_16"}


def test_results_lie_in_the_columns_of_their_slots(sharded):
    (alone,) = run(sharded, works(sharded, PROMPT, slot=0, limit=1))
    (first,) = works(sharded, PROMPT, slot=3, limit=3)
    (second,) = works(sharded, OTHER[:9], slot=0, limit=3)
    result = sharded.prefill([first, second]).result()
    assert result.tokens.shape == result.logprobs.shape == (1, 4)
    assert (result.tokens[0] >= 0).tolist() == [True, False, False, True]
    assert result.tokens[0, 3] == alone.tokens[0]
    assert result.logprobs[0, 3] == np.float32(alone.logprobs[0])


def test_works_of_two_shards_may_come_in_any_order(sharded):
    pair = [*works(sharded, PROMPT, slot=3), *works(sharded, OTHER[:9], slot=0)]
    there, back = (sharded.prefill(order).result() for order in (pair, pair[::-1]))
    np.testing.assert_array_equal(there.tokens, back.tokens)
    np.testing.assert_array_equal(there.logprobs, back.logprobs)


def test_results_may_be_read_late(runner):
    (work,) = works(runner, PROMPT, slot=1)
    (answer,) = run(runner, [work])
    pending = [runner.prefill([work]), runner.decode(1, [1]), runner.decode(4, [1])]
    results = [one.result() for one in reversed(pending)][::-1]
    tokens = np.concatenate([result.tokens[:, 1] for result in results])
    assert tokens[tokens >= 0].tolist() == answer.tokens[:6]


def test_every_parameter_reaches_the_device(runner):
    """Each one changes a hot row's answer, or leaves it greedy."""

    def ask(**fields):
        params = SamplingParams(**{"temperature": 1.0, "seed": 1, "logprobs": 0, **fields})
        return run(runner, works(runner, PROMPT, params=params, limit=12))[0].tokens

    (greedy,) = run(runner, works(runner, PROMPT, limit=12))
    free = ask()
    assert ask() == free
    for changed in ({"seed": 2}, {"temperature": 0.5}):
        assert ask(**changed) not in (free, greedy.tokens)
    for only_best in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert ask(**only_best) == greedy.tokens != free
    chosen = works(runner, PROMPT, params=SamplingParams(seed=1), choice=1, limit=12)
    assert run(runner, chosen)[0].tokens != free


def test_logprobs_come_only_where_they_are_asked_for(runner):
    silent = SamplingParams(temperature=0)
    loud, quiet = run(
        runner, works(runner, PROMPT, slot=0), works(runner, PROMPT, slot=3, params=silent)
    )
    assert loud.tokens == quiet.tokens
    assert all(value < 0 for value in loud.logprobs)
    assert not any(quiet.logprobs)


def test_as_many_stop_ids_as_are_allowed(runner):
    (free,) = run(runner, works(runner, PROMPT))
    others = [token for token in range(TINY.vocab) if token not in free.tokens]
    stops = (*others[: MAX_STOP_IDS - 1], free.tokens[2])
    assert len(stops) == MAX_STOP_IDS
    (answer,) = run(runner, works(runner, PROMPT, stop_ids=stops))
    assert answer.tokens == free.tokens[: free.tokens.index(free.tokens[2]) + 1]


def test_misuse_is_refused_before_it_is_dispatched(runner, sharded):
    (work,) = works(runner, PROMPT)
    same_shard = [*works(sharded, PROMPT, slot=0), *works(sharded, PROMPT, slot=1)]
    with pytest.raises(AssertionError, match="two works on data shard 0"):
        sharded.prefill(same_shard)
    other = dataclasses.replace(works(sharded, PROMPT, slot=2)[0], bucket=4)
    with pytest.raises(AssertionError, match="different buckets"):
        sharded.prefill([same_shard[0], other])
    for broken in (
        {"tokens": ()},
        {"tokens": range(17)},
        {"start": 59},
        {"stop_ids": tuple(range(MAX_STOP_IDS + 1))},
    ):
        with pytest.raises(AssertionError):
            runner.prefill([dataclasses.replace(work, **broken)])
    for steps in (0, 5):
        with pytest.raises(AssertionError, match=f"{steps} steps asked, compiled for 4"):
            runner.decode(steps, [0])


def test_a_program_that_is_added_has_run_and_leaves_every_slot_dead():
    model = tiny(TINY)
    runner = model.runner(programs={})
    assert runner.programs == {}
    for name in ("prefill_16", "prefill_4"):
        runner.add(model.programs[name])
        assert runner._state.live.tolist() == [True, False, False, False]
        assert int(runner._state.position[0]) == 1
    runner.add(model.programs["decode"])
    assert int(runner._state.position[0]) == 2
    assert not runner._state.live.any()
    assert runner.programs == model.programs
    fresh, used = (run(one, works(one, PROMPT, limit=5)) for one in (model.runner(), runner))
    assert fresh == used


@contextlib.contextmanager
def compilations():
    """The names of what is traced or compiled meanwhile."""
    found = []

    def hear(name, seconds, **details):
        if name.startswith("/jax/core/compile/"):
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


def test_a_compilation_is_heard():
    with compilations() as found:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
    assert any("backend_compile" in name for name in found)


@pytest.mark.parametrize("mesh", ["1", "2x4"])
def test_nothing_is_compiled_after_warm_up(mesh):
    """Prompts of every bucket, in every slot, greedy and sampled, all ends."""
    model = tiny(TINY) if mesh == "1" else tiny(TINY, mesh, buckets=(16,))
    runner = model.runner(programs={})
    for program in model.programs.values():
        runner.add(program)
    with compilations() as found:
        for slot, length in enumerate((1, 5, 9, 37)):
            params = GREEDY if slot % 2 else SamplingParams(temperature=0.7, top_k=3, seed=slot)
            rows = works(runner, list(range(1, length + 1)), slot=slot, params=params, limit=7)
            run(runner, rows, steps=1 + slot)
    assert found == []
