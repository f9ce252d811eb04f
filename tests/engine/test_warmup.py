"""Warm-up: every program runs once, and one whose bits differ from its kin's is not used."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from windowed import rolls, stops

from tpuinfer.engine.warmup import WarmUp
from tpuinfer.programs.compile import compile_programs
from tpuinfer.testing.drive import run, works
from tpuinfer.testing.tiny import TINY, tiny


def warmed(model, doctored=()):
    """A runner that warmed up with the model's programs; `doctored` ones go in instead of some."""
    runner = model.runner(programs={})
    warm_up = WarmUp(runner, model.config.vocab)
    for name, program in model.programs.items():
        warm_up.add(dict(doctored).get(name, program))
    return runner


def other(program, change, part="first"):
    """The program with `change` made to what it puts out, or a `part` of it, for the host."""

    def call(*arguments):
        state, out = program.call(*arguments)
        out = jax.tree.map(np.array, out)
        change(getattr(out, part, out))
        return state, jax.tree.map(jax.numpy.asarray, out)

    return dataclasses.replace(program, call=call)


def flip_logprobs(out):
    """The last bit of each row's log-probability."""
    out.packed[0, :, 1] ^= 1
    return out


def flip_last_row(out):
    out.packed[0, -1, 1] ^= 1
    return out


def flip_top(out):
    """The last bit of the last of the most likely tokens."""
    out.top[0, :, 1, -1] ^= 1
    return out


@pytest.mark.parametrize(
    "make",
    [lambda: tiny(TINY), lambda: tiny(TINY, "2x4", buckets=(16,)), stops, lambda: rolls("2x4")],
    ids=["plain", "2x4", "stops", "rolls 2x4"],
)
def test_programs_that_agree_all_serve(make):
    model = make()
    runner = warmed(model)
    assert runner.programs == model.programs
    assert int(runner._state.position.sum()) > 0
    slots = model.plan.slots
    answers = [
        run(one, works(one, [3, 99, 7, 11, 2], slot=slots.slots - 1, limit=5))
        for one in (model.runner(), runner)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["prefill_4x64", "decode_4"])
@pytest.mark.parametrize("change", [flip_logprobs, flip_top])
def test_a_program_with_other_bits_is_dropped(name, change, caplog):
    model = stops()
    doctored = {name: other(model.programs[name], change)}
    with caplog.at_level(logging.INFO, "tpuinfer.engine.warmup"):
        runner = warmed(model, doctored)
    assert runner.programs.keys() == model.programs.keys() - {name}
    assert [record.getMessage() for record in caplog.records] == [
        f"program {name} would change a row's bits on this platform: not used"
    ]
    rows = [works(runner, [5, 8, 13], slot=slot, limit=3) for slot in (0, 13)]
    assert len(run(runner, *rows)) == 2


def test_the_last_row_of_a_prefill_is_tried_too():
    model, name = stops(), "prefill_4x64"
    runner = warmed(model, {name: other(model.programs[name], flip_last_row)})
    assert name not in runner.programs


def flip_scores(out):
    """The last bit of the log-probability of each of the last prompt's tokens."""
    out.packed[-1, :, 1] ^= 1


def flip_top_scores(out):
    """The last bit of the most likely token's, beside each of the last prompt's tokens."""
    out.top[-1, :, 1, 0] ^= 1


@pytest.mark.parametrize("change", [flip_scores, flip_top_scores])
def test_a_prefill_with_other_scores_of_its_prompts_is_dropped(change):
    model, name = stops(), "prefill_4x64"
    runner = warmed(model, {name: other(model.programs[name], change, "prompt")})
    assert runner.programs.keys() == model.programs.keys() - {name}


def test_a_chunk_behind_another_is_tried_too():
    """The first chunk of a prompt finds an empty ring, and shows nothing of how one is read."""
    model = tiny(TINY, rows=(1, 4))
    specs = [model.specs[name] for name in ("mask", "bias", "prefill_1x8", "prefill_4x8")]
    programs = compile_programs(specs)
    behind = []

    def call(*arguments):
        state, out = programs["prefill_4x8"].call(*arguments)
        behind.append(bool(arguments[3].start.any()))
        return state, other_bits(out) if behind[-1] else out

    def other_bits(out):
        out = jax.tree.map(np.array, out)
        flip_logprobs(out.first)
        return jax.tree.map(jax.numpy.asarray, out)

    runner = model.runner(programs={})
    warm_up = WarmUp(runner, model.config.vocab)
    for name in ("mask", "bias", "prefill_1x8"):
        warm_up.add(programs[name])
    warm_up.add(dataclasses.replace(programs["prefill_4x8"], call=call))
    assert behind == [False, True]
    assert runner.programs.keys() == {"mask", "bias", "prefill_1x8"}


def test_every_kind_of_sampling_runs():
    """What only some requests ask for must not be new to the device when one does."""
    model, seen = tiny(TINY), []
    runner = model.runner(programs={})
    prefill = runner.prefill

    def watch(work, rows=None):
        seen.extend(item.params for item in work)
        return prefill(work, rows)

    runner.prefill = watch
    warm_up = WarmUp(runner, model.config.vocab)
    for program in model.programs.values():
        warm_up.add(program)
    assert any(params.temperature > 0 and params.top_p < 1 and params.logprobs for params in seen)
