"""The guard: misfits and stray compiles are counted, said and, in strict mode, refused."""

import concurrent.futures
import dataclasses
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy, toy_params, toy_state

from tpuinfer.errors import RecompileError
from tpuinfer.programs.guard import CompileGuard

ROWS = np.ones((4, 3), np.int32)
ODD = np.ones((5, 3), np.int32)
ONE = np.int32(1)


def values(state):
    return np.asarray(state["sum"]).tolist(), int(state["calls"])


def stray(size):
    """Something that jax has not compiled yet, if no other test used this size."""
    return jnp.arange(size) * 3


def test_ordinary_calls_are_not_counted(caplog):
    guard, program, params, state = CompileGuard(strict=True), toy(), toy_params(), toy_state()
    for _ in range(100):
        with guard.watching():
            state, sums = guard.call(program, params, state, ROWS, ONE)
            np.asarray(sums)
    assert guard.recompiles == 0
    assert caplog.records == []
    assert values(state) == ([2.0 * w * 12 * 100 for w in range(8)], 100)


def test_an_odd_shape_is_counted_said_and_served(caplog):
    guard, program, params, state = CompileGuard(), toy("decode"), toy_params(), toy_state()
    with guard.watching():
        state, _ = guard.call(program, params, state, ROWS, ONE)
        state, sums = guard.call(program, params, state, ODD, ONE)
    assert sums.tolist() == [3] * 5
    assert guard.recompiles == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "decode" in record.getMessage()
    assert "rows is i32[5,3], compiled for i32[4,3]" in record.getMessage()
    state, _ = guard.call(program, params, state, ROWS, ONE)
    assert values(state) == ([2.0 * w * (12 + 15 + 12) for w in range(8)], 3)


def test_a_misfit_compiles_once_and_another_misfit_anew(caplog):
    guard, program, params, state = CompileGuard(), toy(), toy_params(), toy_state()
    counts = []
    for rows in (ODD, ODD, ODD[:2], ODD, ROWS.astype(np.uint32)):
        state, _ = guard.call(program, params, state, rows, ONE)
        counts.append(guard.recompiles)
    assert counts == [1, 1, 2, 2, 3]
    assert len(caplog.records) == 3


def test_every_argument_that_differs_is_named(caplog):
    guard, program, params, state = CompileGuard(), toy(), toy_params(), toy_state()
    guard.call(program, params, state, ODD, np.float32(1))
    (message,) = caplog.messages
    assert message.endswith(
        "rows is i32[5,3], compiled for i32[4,3]; n is f32[], compiled for i32[]"
    )


def test_strict_refuses_and_the_state_lives_on():
    guard, program, params = CompileGuard(strict=True), toy(), toy_params()
    state, _ = guard.call(program, params, toy_state(), ROWS, ONE)
    for count in (1, 2):
        with pytest.raises(RecompileError, match=r"rows is i32\[5,3\], compiled for i32\[4,3\]"):
            guard.call(program, params, state, ODD, ONE)
        assert guard.recompiles == count
    state, _ = guard.call(program, params, state, ROWS, ONE)
    assert values(state) == ([2.0 * w * 24 for w in range(8)], 2)


@pytest.mark.parametrize("strict", [False, True])
def test_a_state_on_the_wrong_device_is_named_and_lives_on(strict):
    """It cannot be served at all: params lie on two devices."""
    guard, program, params = CompileGuard(strict), toy(), toy_params()
    state = jax.device_put(toy_state(), jax.devices()[3])
    with pytest.raises(
        RecompileError, match=r"state\.calls is i32\[\] on .*3.*compiled for .*mesh"
    ):
        guard.call(program, params, state, ROWS, ONE)
    assert guard.recompiles == 1
    assert values(state) == ([0.0] * 8, 0)


def test_arguments_that_no_program_takes():
    guard, program = CompileGuard(), toy()
    with pytest.raises(RecompileError, match=r"n is missing, .*nor can it be compiled"):
        guard.call(program, toy_params(), toy_state(), ROWS)


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_an_error_that_is_not_a_misfit_is_no_incident(kind):
    def call(*arguments):
        raise kind("of its own")

    guard, program = CompileGuard(strict=True), dataclasses.replace(toy(), call=call)
    with pytest.raises(kind, match="of its own"):
        guard.call(program, toy_params(), toy_state(), ROWS, ONE)
    assert guard.recompiles == 0


def test_a_stray_compile_is_counted_and_named(caplog):
    guard = CompileGuard()
    with guard.watching():
        stray(1001)
    assert guard.recompiles >= 1
    assert "iota" in caplog.text
    before = guard.recompiles
    with guard.watching():
        stray(1001)
    stray(1002)
    assert guard.recompiles == before


def watched(guard, *steps):
    with guard.watching():
        for step in steps:
            step()


def test_strict_raises_at_the_end_of_the_block():
    guard, done = CompileGuard(strict=True), []
    with pytest.raises(RecompileError, match="iota"):
        watched(guard, lambda: stray(1003), lambda: done.append("the rest of the block"))
    assert done
    assert guard.recompiles >= 1


def test_strict_does_not_hide_an_error_of_the_block():
    guard = CompileGuard(strict=True)
    with pytest.raises(KeyError):
        watched(guard, lambda: stray(1004), {}.popitem)
    assert guard.recompiles >= 1


def test_of_nested_blocks_the_innermost_hears():
    outer, inner = CompileGuard(), CompileGuard()
    with outer.watching():
        with inner.watching():
            stray(1005)
        assert (outer.recompiles, inner.recompiles > 0) == (0, True)
        stray(1006)
    assert outer.recompiles > 0


def test_threads_do_not_hear_each_other():
    """The block of the main thread opens last: it would be the one to hear."""
    mine, theirs = CompileGuard(), CompileGuard()
    opened, go = threading.Event(), threading.Event()

    def work():
        with theirs.watching():
            opened.set()
            assert go.wait(60)
            stray(1007)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        assert opened.wait(60)
        with mine.watching():
            go.set()
            future.result(60)
    assert mine.recompiles == 0
    assert theirs.recompiles > 0
