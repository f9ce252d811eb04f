"""After warm-up nothing is compiled: a random mix of every kind of request, strict mode on."""

import random
from collections.abc import Callable

import pytest
from configurations import quantised, window
from mixes import ask, serve, tokenizer_of

from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.request import SamplingParams
from tpuinfer.engine.runner import PrefillWork
from tpuinfer.engine.warmup import WarmUp
from tpuinfer.errors import RecompileError
from tpuinfer.programs.guard import CompileGuard
from tpuinfer.testing.tiny import Tiny

COUNT = 200


def warm(make: Callable[[], Tiny] = window) -> DeviceRunner:
    """A runner as `engine.build.start` leaves it, in strict mode."""
    model = make()
    runner = model.runner(programs={})
    warm_up = WarmUp(runner, model.config.vocab)
    for program in model.programs.values():
        warm_up.add(program)
    assert runner.programs.keys() == model.programs.keys()
    runner.guard = CompileGuard(strict=True)
    return runner


@pytest.mark.parametrize("make", [window, quantised])
def test_nothing_is_compiled_for_200_requests(make: Callable[[], Tiny]) -> None:
    runner, chance = warm(make), random.Random(1)
    prefills, decodes, aborted = set(), set(), 0
    for steps in (1, 4):
        requests = [ask(number, chance, make().config.vocab) for number in range(COUNT // 2 + 20)]
        _, traffic = serve(
            runner,
            requests[20:],
            tokenizer=tokenizer_of(make()),
            steps=steps,
            chance=chance,
            doomed=requests[:20],
        )
        prefills.update(traffic.prefills)
        decodes.update(traffic.decodes)
        aborted += traffic.aborted
    assert prefills == {1, 2, 3, 4}
    assert {1, 8} <= decodes
    assert aborted > 5
    assert runner.recompiles == 0


def test_a_shape_that_no_program_has_is_counted() -> None:
    """A dispatch of 12 tokens, which a program for 16 is given: refused, and heard of."""
    runner = warm()
    runner.programs["prefill_1x12"] = runner.programs["prefill_1x16"]
    work = PrefillWork(
        slot=0,
        tokens=[1, 2, 3],
        start=0,
        bucket=12,
        last=True,
        limit=2,
        stop_ids=(),
        seed=0,
        choice=0,
        params=SamplingParams(),
    )
    with pytest.raises(RecompileError, match=r"tokens is i32\[1,12\], compiled for i32\[1,16\]"):
        runner.prefill([work])
    assert runner.recompiles == 1
