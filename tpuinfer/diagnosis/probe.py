"""Ask jax for its devices, in a process of its own: libtpu may hang, abort or talk.

`python -m tpuinfer.diagnosis.probe` prints one line of JSON; `ask` starts it and reads that.
"""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from tpuinfer.diagnosis.facts import Device, Probed

_LONGEST = 300
"""Characters of an error that are shown."""

_SPARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""A GPU's memory is not taken, should a server run on it."""


def ask(environ: Mapping[str, str], seconds: float) -> Probed:
    """What jax says of its devices with these variables; no answer in `seconds` is an error too."""
    command = [sys.executable, "-m", __name__]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env={**environ, **_SPARING},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Probed(error=f"jax did not answer in {seconds:g} s", seconds=seconds, timed_out=True)
    return read(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def read(code: int, out: str, err: str, seconds: float = 0.0) -> Probed:
    """What a probe that ended so has found.

    Args:
      code: its exit code, negative for a signal. out, err: what it printed.
    """
    last = out.strip().splitlines()[-1:] or [""]
    try:
        said: dict[str, Any] = json.loads(last[0])
    except ValueError:
        why = err.strip().splitlines()[-1:] or ["it said nothing"]
        how = f"signal {_name(-code)}" if code < 0 else f"exit code {code}"
        return Probed(error=f"jax ended with {how}: {why[0][:_LONGEST]}", seconds=seconds)
    if "error" in said:
        return Probed(error=said["error"], seconds=seconds)
    devices = tuple(
        Device(**{**one, "coords": tuple(one["coords"]) if one["coords"] else None})
        for one in said["devices"]
    )
    return Probed(devices, said["processes"], seconds=seconds)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _devices() -> dict[str, Any]:
    """Of this process."""
    from tpuinfer.sharding.simulate import settle_platform

    settle_platform()
    import jax

    found = []
    for one in jax.devices():
        stats = _memory(one) if one.process_index == jax.process_index() else {}
        device = Device(
            index=one.id,
            platform=one.platform,
            kind=one.device_kind,
            process=one.process_index,
            coords=getattr(one, "coords", None),
            bytes_limit=stats.get("bytes_limit"),
            bytes_in_use=stats.get("bytes_in_use"),
        )
        found.append(dataclasses.asdict(device))
    return {"devices": found, "processes": jax.process_count()}


def _memory(device: Any) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except Exception:  # not every backend tells it
        return {}


def main() -> None:
    try:
        said = _devices()
    except Exception as error:  # whatever jax, a plugin or a driver raises is the finding
        text = " ".join(f"{type(error).__name__}: {error}".split())
        said = {"error": text[:_LONGEST]}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
