"""`python -m tpuinfer.doctor`: what is wrong with this machine, one line a check.

With --selftest: what its devices do with our programs.
"""

import json
import os
import sys
from typing import Any

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.diagnosis.collect import collect
from tpuinfer.diagnosis.findings import Finding
from tpuinfer.diagnosis.report import as_json, diagnose, exit_code, render
from tpuinfer.errors import ConfigError

_ENVIRON = dict(os.environ)
"""As it was given: what is imported later adds to it."""

flags.declare_key_flag(shared.CACHE_DIR.name)

flags.declare_key_flag(shared.MESH.name)

_READ = {shared.CACHE_DIR.name}

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of the lines.")
_PROBE_SECONDS = flags.DEFINE_float(
    "probe-seconds", 120.0, "How long jax may take to find its devices before that is a failure."
)
_SELFTEST = flags.DEFINE_bool(
    "selftest",
    False,
    "Run every kernel against its reference, compare bits, memory and speed; --mesh says on what.",
)
_MODEL = flags.DEFINE_string(
    "selftest-model",
    None,
    "Whose sizes the selftest's model has (its weights are made up), such as llama-3.2-1b; "
    "default: by the memory of the devices.",
)


def main() -> None:
    """Look at the machine, print what was found, and exit with 1 if anything fails."""
    read = _READ | ({shared.MESH.name} if _SELFTEST.value else set())
    shared.refuse_unread(read, "the doctor")
    if _PROBE_SECONDS.value <= 0:
        raise ConfigError(f"probe-seconds is {_PROBE_SECONDS.value:g}: give a number above 0")
    facts = collect(_ENVIRON, cache_dir=shared.cache_dir(), seconds=_PROBE_SECONDS.value)
    findings, figures = diagnose(facts), None
    if _SELFTEST.value:
        findings, figures = _selftest(findings)
    elif not _JSON.value:
        print(render(findings))
    if _JSON.value:
        print(as_json(findings, figures))
    sys.exit(exit_code(findings))


def _selftest(before: list[Finding]) -> tuple[list[Finding], dict[str, Any]]:
    """Run it if the machine is well, and print what it finds as it comes."""
    from tpuinfer.selftest.report import selftest

    def say(*findings: Finding) -> None:
        if not _JSON.value:
            print(render(findings), flush=True)

    say(*before)
    if exit_code(before):
        return before, {}
    with shared.Bars() as progress:
        done = selftest(
            shared.MESH.value,
            _MODEL.value,
            cache_dir=shared.cache_dir(),
            progress=progress,
            say=say,
        )
    if not _JSON.value:
        print("Send this back, with the output of --selftest --json, if anything is off.")
        print(json.dumps(done.figures, indent=1))
    return before + done.findings, done.figures


if __name__ == "__main__":
    shared.run(main)
