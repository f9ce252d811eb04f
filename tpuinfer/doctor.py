"""`python -m tpuinfer.doctor`: what is wrong with this machine, one line a check."""

import os
import sys

from absl import flags

from tpuinfer import flags as shared
from tpuinfer.diagnosis.collect import collect
from tpuinfer.diagnosis.report import as_json, diagnose, exit_code, render
from tpuinfer.errors import ConfigError

_ENVIRON = dict(os.environ)
"""As it was given: what is imported later adds to it."""

flags.declare_key_flag(shared.CACHE_DIR.name)

_READ = {shared.CACHE_DIR.name}

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object in place of the lines.")
_PROBE_SECONDS = flags.DEFINE_float(
    "probe-seconds", 120.0, "How long jax may take to find its devices before that is a failure."
)


def main() -> None:
    """Look at the machine, print what was found, and exit with 1 if anything fails."""
    _refuse_unread()
    if _PROBE_SECONDS.value <= 0:
        raise ConfigError(f"probe-seconds is {_PROBE_SECONDS.value:g}: give a number above 0")
    facts = collect(_ENVIRON, cache_dir=shared.cache_dir(), seconds=_PROBE_SECONDS.value)
    findings = diagnose(facts)
    print(as_json(findings) if _JSON.value else render(findings))
    sys.exit(exit_code(findings))


def _refuse_unread() -> None:
    """A flag of the other front doors means nothing here, where no model is loaded."""
    for flag in flags.FLAGS.get_flags_for_module(shared.__name__):
        if flag.present and flag.name not in _READ:
            raise ConfigError(f"--{flag.name} means nothing to the doctor: leave it out")


if __name__ == "__main__":
    shared.run(main)
