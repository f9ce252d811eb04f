import dataclasses

import pytest

from tpuinfer.config import EngineConfig
from tpuinfer.engine.plan import plan_of
from tpuinfer.planning import hardware, running
from tpuinfer.testing.tiny import TINY


@pytest.fixture
def plan():
    return plan_of(TINY, mesh="2x4", engine=EngineConfig.parse("16x1024"))


def test_devices_that_no_table_knows_get_what_there_is(plan, monkeypatch):
    monkeypatch.setattr(running, "usable_bytes", lambda mesh: 10**9)
    text = running.explain(plan, "tiny", "none")
    assert running.topology_of(plan.layout.mesh) is None
    assert "GB for programs, of 1.00 GB that there are" in text
    assert "What would fit: --slots 512x1024" in text
    assert "rings    global" in text


def test_even_one_slot_may_be_too_much(plan, monkeypatch):
    monkeypatch.setattr(running, "usable_bytes", lambda mesh: 1000)
    assert "What would fit: a larger mesh" in running.explain(plan, "tiny", "none")


def test_a_chip_that_is_known_gets_the_plan_and_its_remedies(plan, monkeypatch):
    small = dataclasses.replace(hardware.find("v5e"), hbm_usable_bytes=190 * 10**6)
    monkeypatch.setattr(hardware, "by_device_kind", lambda kind: small)
    assert str(running.topology_of(plan.layout.mesh)) == "v5e:2x4"
    text = running.explain(plan, "tiny", "auto")
    assert "tiny on v5e:2x4 (8 chips of TPU v5e), mesh data 2, model 4" in text.splitlines()[0]
    assert "does NOT fit" in text
    assert "--slots" in text
