"""All checks together: order, lines, JSON and exit code."""

import json

import pytest
from machines import VERSIONS, laptop, tpu_vm

from tpuinfer.diagnosis.facts import Holder, Probed
from tpuinfer.diagnosis.findings import Level, fail, ok, size, warn
from tpuinfer.diagnosis.report import as_json, diagnose, exit_code, render


def test_a_healthy_machine_is_all_ok():
    for facts in (laptop(), tpu_vm()):
        findings = diagnose(facts)
        assert {one.level for one in findings} == {Level.OK}
        assert exit_code(findings) == 0


def test_a_tpu_in_trouble_is_told_line_by_line():
    facts = tpu_vm(
        versions={**VERSIONS, "libtpu": "0.0.30"},
        environ={"JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": "--a"},
        holders=(Holder("/dev/vfio/0", 41, "python"),),
        probed=Probed(error="not asked: process 41 has /dev/vfio/0 open, in use by it"),
    )
    findings = diagnose(facts)
    told = [(one.level.value, one.what) for one in findings if one.level is not Level.OK]
    assert told == [
        ("FAIL", "libtpu"),
        ("warn", "environment"),
        ("warn", "environment"),
        ("FAIL", "held"),
        ("FAIL", "devices"),
    ]
    assert exit_code(findings) == 1


FINDINGS = [ok("a", "fine"), warn("longer", "odd", "look"), fail("b", "bad", "mend it")]


def test_lines_are_aligned():
    assert render(FINDINGS).splitlines() == [
        "ok    a       fine",
        "warn  longer  odd; look",
        "FAIL  b       bad; mend it",
    ]
    assert render([]) == ""


def test_json_holds_the_same():
    said = json.loads(as_json(FINDINGS))
    assert said["ok"] is False
    assert said["checks"][1] == {
        "level": "warn",
        "what": "longer",
        "found": "odd",
        "remedy": "look",
    }
    assert json.loads(as_json(FINDINGS[:2]))["ok"] is True


def test_warnings_do_not_fail():
    assert exit_code(FINDINGS[:2]) == 0
    assert exit_code(FINDINGS) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (2**20 * 3 // 2, "1.5 MiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_bytes_are_for_people(count, text):
    assert size(count) == text
