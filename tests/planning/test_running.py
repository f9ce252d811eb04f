import dataclasses

import pytest
from absl.flags import FLAGS

from tpuinfer import flags
from tpuinfer.config import EngineConfig, Settings
from tpuinfer.engine import build, footprint, scratch
from tpuinfer.engine.plan import plan_of
from tpuinfer.errors import CheckpointError, OutOfMemoryError
from tpuinfer.planning import hardware, running
from tpuinfer.platform import platform_settings
from tpuinfer.testing.tiny import TINY


@pytest.fixture
def plan():
    tpu = platform_settings("tpu")
    return plan_of(TINY, mesh="2x4", engine=EngineConfig.parse("16x1024"), settings=tpu)


def too_small(plan):
    """A v5e whose memory is a little less than the plan takes."""
    shares = footprint.shares(plan)
    taken = sum(one.bytes for one in shares) + scratch.temporaries(plan) + scratch.code(plan)
    return dataclasses.replace(hardware.find("v5e"), hbm_usable_bytes=taken - 200_000)


def test_devices_that_no_table_knows_get_what_there_is(plan, monkeypatch):
    monkeypatch.setattr(running, "usable_bytes", lambda mesh: 10**9)
    text = running.explain(plan, "tiny", "none")
    assert running.topology_of(plan.layout.mesh) is None
    assert "GB for programs, of 1.00 GB that there are" in text
    assert "What would fit: --slots 32x1024" in text
    assert "rings    global" in text


def test_even_one_slot_may_be_too_much(plan, monkeypatch):
    monkeypatch.setattr(running, "usable_bytes", lambda mesh: 1000)
    assert "What would fit: a larger mesh" in running.explain(plan, "tiny", "none")


def test_a_chip_that_is_known_gets_the_plan_and_its_remedies(plan, monkeypatch):
    monkeypatch.setattr(hardware, "by_device_kind", lambda kind: too_small(plan))
    assert str(running.topology_of(plan.layout.mesh)) == "v5e:2x4"
    text = running.explain(plan, "tiny", "auto")
    assert "tiny on v5e:2x4 (8 chips of TPU v5e), mesh data 2, model 4" in text.splitlines()[0]
    assert "fits, but programs may need more than is left" in text
    assert "--slots" in text


@pytest.fixture
def parsed():
    if FLAGS.is_parsed():
        yield
        return
    FLAGS.mark_as_parsed()
    yield
    FLAGS.unparse_flags()


STARTS = {
    "load": lambda plan, chosen: flags.load(chosen, plan.engine),
    "load_to_serve": lambda plan, chosen: flags.load_to_serve(
        chosen, plan.engine, max_waiting=1, max_waiting_tokens=None, plan=plan
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_that_runs_out_of_memory_prints_the_plan(start, plan, parsed, monkeypatch):
    def fails(error):
        def load(*given, **named):
            raise error

        return load

    monkeypatch.setattr(hardware, "by_device_kind", lambda kind: too_small(plan))
    monkeypatch.setattr(build, "make_plan", lambda *given, **named: plan)
    monkeypatch.setattr(build, "load", fails(OutOfMemoryError("out of device memory: so much")))
    with pytest.raises(OutOfMemoryError) as told:
        STARTS[start](plan, Settings(model="tiny"))
    first, empty, head, *table = str(told.value).splitlines()
    assert (first, empty) == ("out of device memory: so much", "")
    assert head.startswith("tiny on v5e:2x4")
    assert any(line.startswith("headroom") for line in table)
    assert any("What would fit" in line for line in table)
    monkeypatch.setattr(build, "load", fails(CheckpointError("damaged")))
    with pytest.raises(CheckpointError, match=r"^damaged$"):
        STARTS[start](plan, Settings(model="tiny"))


def test_the_table_is_of_what_was_to_be_loaded(plan, monkeypatch):
    """Weights that are stored as int8 already: the question alone would not know."""
    tpu, asked = platform_settings("tpu"), plan.engine
    coded = plan_of(TINY, mesh="2x4", engine=asked, settings=tpu, weights="int8")
    monkeypatch.setattr(hardware, "by_device_kind", lambda kind: too_small(plan))
    monkeypatch.setattr(running.as_text, "as_text", lambda answer, remedies: answer)
    found = running.explain(coded, "tiny", "auto")
    assert found.hbm.weights == footprint.weight_bytes(coded) < footprint.weight_bytes(plan)
