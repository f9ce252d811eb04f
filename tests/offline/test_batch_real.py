"""SIGKILL, with the real model: what is resumed has the bits of what was never broken off."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

LINES = 200
KILLED_AT = (12, 45, 90, 130, 175)
"""Lines in the output when the next SIGKILL comes."""


def requests() -> list[dict]:
    """Chats and completions of several lengths, most of them drawn with temperature."""
    made = []
    for number in range(LINES):
        body = {"max_tokens": 2 + number % 7, "temperature": (0.0, 0.7, 1.3)[number % 3]}
        if number % 8:
            url, body["prompt"] = "/v1/completions", f"The number {number} is"
            body |= {"logprobs": 2} if number % 5 == 0 else {}
        else:
            url = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": f"Say {number} in words."}]
        made.append({"custom_id": f"q{number}", "method": "POST", "url": url, "body": body})
    return made


def command(source: Path, folder: Path) -> list[str]:
    return [
        sys.executable, "-m", "tpuinfer.batch", "--input", str(source), "--sort",
        "--output", str(folder / "out.jsonl"), "--slots=8x256", "--quiet",
    ]  # fmt: skip


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(source: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(source, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def await_lines(lines: int, running: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 180
    while lines_in(folder / "out.jsonl") < lines:
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.01)


def kill_at(lines: int, source: Path, folder: Path) -> None:
    """Start, and SIGKILL once the output has so many lines."""
    running = start(source, folder)
    await_lines(lines, running, folder)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()


def finish(running: subprocess.Popen[bytes], folder: Path) -> bytes:
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    return (folder / "out.jsonl").read_bytes()


def test_five_kills_change_no_bit(tmp_path):
    source, unbroken, broken = (tmp_path / name for name in ("in.jsonl", "unbroken", "broken"))
    source.write_text("".join(json.dumps(one) + "\n" for one in requests()), "utf-8")
    unbroken.mkdir()
    broken.mkdir()
    # The two at the same time, which is faster than one after the other. The one thing that they
    # need not share is the second in which they were begun.
    name = "out.jsonl.manifest.json"
    with start(source, unbroken) as beside:
        await_lines(1, beside, unbroken)
        (broken / name).write_bytes((unbroken / name).read_bytes())
        left = []
        for lines in KILLED_AT:
            kill_at(lines, source, broken)
            left.append(LINES - lines_in(broken / "out.jsonl"))
        wanted = finish(beside, unbroken)
    assert all(left), f"some runs ended before they were killed: {left} lines were left"
    found = finish(start(source, broken), broken)
    assert found == wanted
    answers = [json.loads(line) for line in found.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"q{n}" for n in range(LINES)]
    assert all(answer["response"]["status_code"] == 200 for answer in answers)
    texts = {json.dumps(answer["response"]["body"]["choices"][0]) for answer in answers}
    assert len(texts) > LINES // 2, "answers that are all alike would show nothing"
