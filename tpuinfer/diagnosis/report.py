"""Every check in order, and what a front door prints of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpuinfer.diagnosis import devices, environment, held, host, packages
from tpuinfer.diagnosis.facts import Facts
from tpuinfer.diagnosis.findings import Finding, Level

CHECKS = (
    packages.check,
    environment.check,
    held.check,
    devices.found,
    devices.topology,
    devices.memory,
    host.memory,
    host.limits,
    host.huge_pages,
    host.clock,
    host.compiled,
    host.models,
)
"""In the order in which they are printed: what breaks the most comes first."""


def diagnose(facts: Facts) -> list[Finding]:
    """What every check says of a machine. Whoever knows more may add findings of its own."""
    return [finding for check in CHECKS for finding in check(facts)]


def render(findings: Sequence[Finding]) -> str:
    """A line for each finding: its level, its name, what was found; what to do."""
    width = max((len(one.what) for one in findings), default=0)
    return "\n".join(
        f"{one.level.value:<4}  {one.what:<{width}}  {one.found}"
        + (f"; {one.remedy}" if one.remedy else "")
        for one in findings
    )


def as_json(findings: Sequence[Finding], figures: Mapping[str, Any] | None = None) -> str:
    """The same as one JSON object: whether nothing fails, and the checks in order.

    Args:
      figures: of a selftest; None = there was none.
    """
    checks = [
        {"level": one.level.value, "what": one.what, "found": one.found, "remedy": one.remedy}
        for one in findings
    ]
    found: dict[str, Any] = {"ok": exit_code(findings) == 0, "checks": checks}
    if figures is not None:
        found["selftest"] = dict(figures)
    return json.dumps(found, indent=2)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything fails; warnings are none."""
    return int(any(one.level is Level.FAIL for one in findings))
