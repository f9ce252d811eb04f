import asyncio
import threading

import pytest
from served import MODEL, Gate, fake_engine

from tpuinfer.engine.engine import Engine
from tpuinfer.engine.request import Request, SamplingParams
from tpuinfer.errors import RequestError
from tpuinfer.server.bridge import Answers, Bridge
from tpuinfer.server.failures import EngineDeadError, NotReadyError
from tpuinfer.testing.fake import FakeTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=4)


def ask(name: str, text: str = "abc", params: SamplingParams = GREEDY) -> Request:
    return Request(name, [ord(char) for char in text], params)


async def read(answers: Answers) -> dict[str, str]:
    texts: dict[str, str] = {}
    async for deltas in answers:
        assert deltas
        for delta in deltas:
            texts[delta.request_id] = texts.get(delta.request_id, "") + delta.text
    return texts


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_requests_submitted_together_are_read_together(bridge):
    async def scenario():
        return await read(await bridge.submit([ask("a"), ask("b", "123")]))

    assert asyncio.run(scenario()) == {"a": "defg", "b": "4567"}


def test_many_at_once_are_told_apart(bridge):
    async def one(number: int) -> None:
        text = chr(97 + number)
        answers = await bridge.submit([ask(f"r{number}", text)])
        assert await read(answers) == {
            f"r{number}": "".join(chr(98 + number + i) for i in range(4))
        }

    async def scenario():
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(scenario())


def test_a_step_is_one_call_into_the_loop(engine, bridge):
    async def scenario():
        gate = Gate(engine)
        gate.shut()
        answers = await bridge.submit([ask(f"r{slot}") for slot in range(4)])
        calls = []
        loop = asyncio.get_running_loop()
        post = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda call, *args: (calls.append(args), post(call, *args))
        gate.open()
        await read(answers)
        return calls, gate.steps

    calls, steps = asyncio.run(scenario())
    assert len(calls) <= steps
    assert max(len(deltas) for (deltas,) in calls) == 4


def test_one_refusal_refuses_all(engine, bridge):
    async def scenario():
        with pytest.raises(RequestError, match="500"):
            await bridge.submit([ask("a"), Request("b", [500], GREEDY)])
        assert await read(await bridge.submit([ask("a")])) == {"a": "defg"}

    asyncio.run(scenario())
    assert engine.metrics.finished["abort"] == 1


def test_closing_early_frees_the_slot(engine, bridge):
    async def scenario():
        gate = Gate(engine)
        gate.shut()
        answers = await bridge.submit([ask("a", params=SamplingParams(max_tokens=None))])
        answers.close()
        gate.open()
        await until(lambda: engine.metrics.finished["abort"] == 1)
        await until(lambda: not engine.has_work)

    asyncio.run(scenario())
    assert engine.metrics.running == 0


def test_cancelled_while_it_waits_for_admission(engine, bridge):
    async def scenario():
        gate = Gate(engine)
        gate.shut()
        first = await bridge.submit([ask("a")])
        await until(lambda: gate.waiting)
        second = asyncio.ensure_future(bridge.submit([ask("b")]))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        assert await read(first) == {"a": "defg"}
        await until(lambda: engine.metrics.finished["abort"] == 1)

    asyncio.run(scenario())


def test_nothing_is_taken_before_attach():
    bridge = Bridge(MODEL)
    with pytest.raises(NotReadyError, match="fake is still loading"):
        asyncio.run(bridge.submit([ask("a")]))
    with pytest.raises(NotReadyError):
        _ = bridge.tokenizer
    with pytest.raises(NotReadyError):
        _ = bridge.context
    assert bridge.metrics is None


@pytest.mark.parametrize("fault", ["step", "add"])
def test_a_dead_engine_fails_everyone_and_hangs_no_one(engine, bridge, caplog, fault):
    async def scenario():
        gate = Gate(engine)
        gate.shut()
        first = await bridge.submit([ask("a")])
        await until(lambda: gate.waiting)
        second = asyncio.ensure_future(bridge.submit([ask("b")]))
        await asyncio.sleep(0)
        broken = RuntimeError("chip on fire")
        if fault == "step":
            gate.fail = broken
        else:
            engine.add = raising(broken)
        gate.open()
        async with asyncio.timeout(5):
            with pytest.raises(EngineDeadError, match="RuntimeError"):
                await second
            with pytest.raises(EngineDeadError):
                await read(first)
            with pytest.raises(EngineDeadError):
                await bridge.submit([ask("c")])

    asyncio.run(scenario())
    assert "chip on fire" in caplog.text
    assert isinstance(bridge.failure, EngineDeadError)
    bridge.stop()
    assert isinstance(bridge.failure, EngineDeadError)


def raising(error: Exception):
    def add(request: Request) -> None:
        raise error

    return add


def test_stop_fails_what_is_in_flight(engine, bridge):
    async def scenario():
        gate = Gate(engine)
        gate.shut()
        answers = await bridge.submit([ask("a", params=SamplingParams(max_tokens=None))])
        await until(lambda: gate.waiting)
        stopping = asyncio.ensure_future(asyncio.to_thread(bridge.stop))
        await asyncio.sleep(0.01)
        gate.open()
        await stopping
        with pytest.raises(NotReadyError, match="stopping"):
            await read(answers)
        with pytest.raises(NotReadyError, match="stopping"):
            await bridge.submit([ask("b")])

    asyncio.run(scenario())
    assert "engine" not in {thread.name for thread in threading.enumerate()}


def test_attach_after_stop_starts_nothing():
    bridge = Bridge(MODEL)
    bridge.stop()
    bridge.attach(fake_engine(), FakeTokenizer())
    assert isinstance(bridge.failure, NotReadyError)


def test_a_closed_loop_does_not_kill_the_engine(engine: Engine, bridge: Bridge):
    async def leave():
        gate = Gate(engine)
        gate.shut()
        await bridge.submit([ask("a")])
        return gate

    gate = asyncio.run(leave())
    gate.open()

    async def scenario():
        return await read(await bridge.submit([ask("b")]))

    assert asyncio.run(scenario()) == {"b": "defg"}


def test_an_idle_engine_is_not_stepped(engine, bridge):
    async def scenario():
        gate = Gate(engine)
        await read(await bridge.submit([ask("a")]))
        await until(lambda: not engine.has_work)
        steps = gate.steps
        await asyncio.sleep(0.05)
        return gate.steps - steps

    assert asyncio.run(scenario()) <= 1
