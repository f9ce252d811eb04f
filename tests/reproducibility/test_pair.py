"""Two processes and one mesh: only here can a sum depend on the slot, so only here it shows.

In one process an all-reduce treats all rows alike; over the network it cuts its buffer by position.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("pair.py")
SECONDS = 300
"""For both processes together; some 20 on two idle cores."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What both processes found; they must agree."""
    folder, port = tmp_path_factory.mktemp("pair"), free_port()
    outs = [folder / f"{rank}.json" for rank in range(2)]
    logs = [folder / f"{rank}.log" for rank in range(2)]
    environment = {**os.environ, "NPROC": "8"}  # collectives hold a thread each
    processes = []
    try:
        for rank, (out, log) in enumerate(zip(outs, logs, strict=True)):
            command = [sys.executable, str(WORKER), str(rank), str(port), str(out)]
            with log.open("wb") as file:
                processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                )
        end = time.monotonic() + SECONDS
        while any(one.poll() is None for one in processes) and time.monotonic() < end:
            if any(one.poll() for one in processes):
                break  # the other would wait for it in vain
            time.sleep(0.1)
    finally:
        codes = [one.poll() for one in processes]
        for one in processes:
            one.kill()
            one.wait()
    said = "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)
    assert codes == [0, 0], f"exit codes {codes} (None: had to be killed)\n{said}"
    mine, other = (json.loads(out.read_text()) for out in outs)
    assert mine == other
    return dict(mine)


def test_no_bit_depends_on_slot_or_neighbours(found: dict[str, Any]) -> None:
    assert found["as it is"] == {"slots": [], "mixed": []}


def test_a_plain_sum_over_the_model_axis_is_caught(found: dict[str, Any]) -> None:
    assert len(found["plain sum"]["slots"]) > 4
    assert any("logprobs" in line for line in found["plain sum"]["mixed"])
