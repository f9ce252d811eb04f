"""The selftest, on devices that are right and on ones that are not."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from tpuinfer.benchmark.bounds import Cost, Machine
from tpuinfer.diagnosis.findings import Level, ok
from tpuinfer.engine.plan import plan_of
from tpuinfer.platform import platform_settings
from tpuinfer.selftest import kernels, report, whole
from tpuinfer.selftest.kernels import Case
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.testing.fake import FakeRunner
from tpuinfer.testing.tiny import TINY, tiny


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(parse_mesh(1))


def subject(runner, context=64):
    plan = plan_of(TINY, settings=platform_settings("cpu"))
    cost = SimpleNamespace(decode=lambda live, position: Cost(1e6 * live, 1.0))
    return SimpleNamespace(
        runner=runner,
        plan=plan,
        machine=Machine(1e9, 1e12),
        cost=cost,
        describe_machine=lambda: {"platform": "cpu"},
    )


def test_a_kernel_that_agrees_passes(mesh):
    (found,) = kernels.check(mesh, "interpret", (Case("small", "int8", 2, 1, length=256),))
    assert found.level is Level.OK
    assert found.what == "kernel small"


def test_a_kernel_that_is_wrong_fails(mesh, monkeypatch):
    """The reference in its place, its outputs or its rings off by a little."""
    right, case = kernels._attended, Case("small", heads=2, kv_heads=1, length=256)

    def output(layout, by, *given):
        out, ring = right(layout, "reference", *given)
        return out + (0.05 if by == "pallas" else 0), ring

    def ring(layout, by, *given):
        out, kept = right(layout, "reference", *given)
        change = jnp.bfloat16(0.25 if by == "pallas" else 0)
        return out, kept.replace(keys=kept.keys.at[1, 0, 0, 0].add(change))

    for wrong, says in ((output, "differs from XLA's by 0.05"), (ring, "by inf")):
        monkeypatch.setattr(kernels, "_attended", wrong)
        (found,) = kernels.check(mesh, "pallas", (case,))
        assert found.level is Level.FAIL
        assert says in found.found


def test_a_kernel_that_does_not_compile_fails(mesh):
    """As TPU kernels do on a CPU that is not told to interpret them."""
    (found,) = kernels.check(mesh, "pallas", (Case("small", heads=2, kv_heads=1, length=256),))
    assert found.level is Level.FAIL
    assert "does not run: " in found.found


def test_the_cases_cover_what_models_have():
    names = {case.name for case in kernels.CASES}
    assert len(names) == len(kernels.CASES) == 16
    assert {case.ring for case in kernels.CASES} == {"bfloat16", "int8", "fp8"}
    assert {case.head_dim for case in kernels.CASES} == {64, 128, 256}
    for told in ("window", "cap", "logits"):
        assert any(getattr(case, told) for case in kernels.CASES)


def test_bits_that_depend_on_nothing_pass():
    assert whole.bits(subject(FakeRunner(16))).level is Level.OK


def test_bits_that_depend_on_the_slot_fail():
    class Slotted(FakeRunner):
        def decode(self, steps, quotas, **given):
            pending = super().decode(steps, quotas, **given)
            out = pending.result()
            out.logprobs[:, 3] += 1e-7
            return SimpleNamespace(result=lambda: out)

    found = whole.bits(subject(Slotted(16)))
    assert found.level is Level.FAIL
    assert found.found.startswith("1 of 8 requests differ")


def test_the_whole_report_on_a_tiny_model(monkeypatch):
    runner = tiny().runner()
    monkeypatch.setattr(report, "_subject", lambda *given: subject(runner))
    checked = []

    def check(mesh, by, cases):
        checked.append((mesh.size, by, cases))
        yield ok("kernel small", "differs by 0")

    monkeypatch.setattr(kernels, "check", check)
    said = []
    done = report.selftest("1", "tiny", say=said.append)
    assert done.findings == said
    assert [one.what for one in said] == [
        "kernel small",
        "bits",
        "memory",
        "bandwidth",
        "decode, 1 live",
        "decode, 4 live",
    ]
    assert all(one.level is Level.OK for one in said), said
    assert checked == [(1, "interpret", kernels.CASES[::5])]
    scratch = max(entry.temp_bytes for entry in runner.manifest)
    assert done.figures["memory"]["compiled_temporaries"] == scratch > 0
    assert {row["live"] for row in done.figures["speed"]["decode"]} == {1, 4}


def test_memory_that_is_off_the_plan_is_told(monkeypatch):
    one = subject(FakeRunner(4))
    one.runner.manifest = [SimpleNamespace(temp_bytes=5)]
    lying = sum(share.bytes for share in whole.footprint.shares(one.plan))
    for used, level in ((lying, Level.OK), (1.1 * lying, Level.WARN)):
        stats = {"bytes_in_use": used, "peak_bytes_in_use": used}
        device = SimpleNamespace(memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(whole, "_device", lambda plan, device=device: device)
        (found,), figures = whole.memory(one)
        assert found.level is level
        assert figures["bytes_in_use"] == int(used)
