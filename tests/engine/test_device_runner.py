"""The runner over real programs: its contract, its refusals, and no compile after warm-up."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from windowed import rolls, stops

from tpuinfer.engine.request import MAX_STOP_IDS, TOP_LOGPROBS, SamplingParams
from tpuinfer.engine.warmup import WarmUp
from tpuinfer.errors import RequestError
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.programs.slots import SlotLayout
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
    assert runner.layout == SlotLayout((4,), (48,), 1)
    assert (runner.chunk, runner.buckets, runner.rolls) == (16, (8, 16), False)
    assert sharded.layout == SlotLayout((4,), (48,), 2)
    assert (sharded.chunk, sharded.buckets) == (16, (16,))
    assert runner.programs.keys() == {"mask", "bias", "decode", "prefill_1x8", "prefill_1x16"}
    assert runner.prefill_rows == {8: 1, 16: 1}
    assert [entry.name for entry in runner.manifest] == list(runner.programs)
    assert runner.recompiles == 0


def test_what_it_says_of_ring_classes_and_rows():
    model = rolls()
    runner = model.runner(programs=model.specs)
    assert runner.layout == SlotLayout((6, 8), (32, 80), 1)
    assert runner.rolls
    assert runner.prefill_rows == {64: 4}


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
    pending = [runner.prefill([work]), runner.decode(1, {1: 1}), runner.decode(4, {1: 4})]
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


def test_the_most_likely_tokens_come_only_where_they_are_asked_for(runner):
    """And are not even sent when nobody asks."""
    top = SamplingParams(temperature=0, logprobs=3)
    (asks,) = works(runner, PROMPT, slot=0, params=top)
    (only_own,) = works(runner, PROMPT, slot=1, params=GREEDY)
    quiet = [runner.prefill([only_own]).result(), runner.decode(1, {1: 1}).result()]
    assert all(result.top_ids is result.top_logprobs is None for result in quiet)
    loud = [runner.prefill([asks]).result()]
    runner.prefill([only_own])
    loud += [runner.decode(1, {0: 1, 1: 1}).result()]
    for result in loud:
        ids, logprobs = result.top_ids[0], result.top_logprobs[0]
        assert ids.shape == logprobs.shape == (4, TOP_LOGPROBS)
        assert ids[0, 0] == result.tokens[0, 0]
        assert logprobs[0, 0] == result.logprobs[0, 0]
        assert (np.diff(logprobs[0, :3]) <= 0).all()
        assert len({*ids[0, :3].tolist()} - {-1}) == 3
        assert (ids[0, 3:] == -1).all()
        assert (ids[1:] == -1).all()
    assert runner.decode(1, {1: 1}).result().top_ids is None
    (again,) = works(runner, PROMPT, slot=0, params=GREEDY)
    assert runner.prefill([again]).result().top_ids is None
    assert runner.decode(1, {0: 1}).result().top_ids is None


def test_a_prompt_that_goes_on_sends_no_most_likely_tokens_yet(runner):
    first, last = works(runner, OTHER, params=SamplingParams(temperature=0, logprobs=1))
    assert runner.prefill([first]).result().top_ids is None
    assert runner.prefill([last]).result().top_ids is not None


def test_the_fewest_rows_that_suffice_run(monkeypatch):
    runner = stops().runner()
    used = []
    dispatch = runner._dispatch
    monkeypatch.setattr(
        runner, "_dispatch", lambda name, *given: (used.append(name), dispatch(name, *given))[1]
    )
    chunks = [works(runner, PROMPT, slot=slot)[0] for slot in (0, 3, 6, 8, 13)]
    for count in (1, 2, 4):
        runner.prefill(chunks[:count])
    runner.prefill(chunks[4:])
    for active in ([13], [0, 3, 6, 13], [0, 3, 6, 8, 13], []):
        runner.decode(1, dict.fromkeys(active, 1))
    prefills = ["prefill_1x64", "prefill_4x64", "prefill_4x64", "prefill_1x64"]
    assert used == [*prefills, "decode_4", "decode_4", "decode", "decode_4"]
    with pytest.raises(AssertionError, match="5 works on one data shard: at most 4"):
        runner.prefill(chunks)
    with pytest.raises(AssertionError, match="2 works on one data shard: at most 1"):
        runner.prefill(chunks[:2], 1)


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
    with pytest.raises(AssertionError, match="2 works on one data shard: at most 1"):
        sharded.prefill(same_shard)
    other = dataclasses.replace(works(sharded, PROMPT, slot=2)[0], bucket=8)
    with pytest.raises(AssertionError, match="different buckets"):
        sharded.prefill([same_shard[0], other])
    for broken in (
        {"tokens": ()},
        {"tokens": range(17)},
        {"start": 43},
        {"stop_ids": tuple(range(MAX_STOP_IDS + 1))},
    ):
        with pytest.raises(AssertionError):
            runner.prefill([dataclasses.replace(work, **broken)])
    for steps in (0, 5):
        with pytest.raises(AssertionError, match=f"{steps} steps asked, compiled for 4"):
            runner.decode(steps, {0: 0})


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
    warm_up = WarmUp(runner, TINY.vocab)
    for program in model.programs.values():
        warm_up.add(program)
    with compilations() as found:
        for slot, length in enumerate((1, 5, 9, 37)):
            params = GREEDY if slot % 2 else SamplingParams(temperature=0.7, top_k=3, seed=slot)
            rows = works(runner, list(range(1, length + 1)), slot=slot, params=params, limit=7)
            run(runner, rows, steps=1 + slot)
    assert found == []


def test_other_weights_serve_from_the_next_dispatch_without_a_compile(runner):
    """Whatever was begun goes on with the new ones; then the old ones give the old answer again."""
    runner.guard = CompileGuard(strict=True)
    old = tiny(TINY).params
    (before,) = run(runner, works(runner, PROMPT))
    runner.update(
        {name: jax.device_put(np.asarray(x)[::-1], x.sharding) for name, x in old.items()}
    )
    (after,) = run(runner, works(runner, PROMPT))
    assert after.tokens != before.tokens
    runner.update(old)
    assert run(runner, works(runner, PROMPT)) == [before]
    assert runner.recompiles == 0


def test_weights_that_do_not_fit_are_refused_and_change_nothing(sharded):
    old = tiny(TINY, "2x4", buckets=(16,)).params
    name = "norm.weight"
    elsewhere = jax.device_put(np.asarray(old[name]), jax.devices()[0])
    (before,) = run(sharded, works(sharded, PROMPT))
    for other, words in (
        ({name: old[name][:-1]}, r"params.norm.weight is f32\[31\], compiled for f32\[32\]"),
        ({name: old[name].astype(jnp.bfloat16)}, r"is bf16\[32\], compiled for f32\[32\]"),
        ({name: elsewhere}, "norm.weight is f32"),
        ({name: np.asarray(old[name])}, "params.norm.weight is not on the mesh"),
        ({"more": old[name]}, "params.more is Array"),
    ):
        with pytest.raises(RequestError, match=words):
            sharded.update({**old, **other})
    with pytest.raises(RequestError, match=r"params.norm.weight is missing"):
        sharded.update({key: x for key, x in old.items() if key != name})
    assert run(sharded, works(sharded, PROMPT)) == [before]
