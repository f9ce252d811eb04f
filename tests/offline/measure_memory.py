"""How much memory a batch takes, and how fast it goes, by its lines; the engine is the fake one.

python tests/offline/measure_memory.py --lines 2000 --lines 200000
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import fake_batch


def measure(lines: int, folder: Path) -> tuple[float, float]:
    """(peak MiB of the process, seconds) of a batch of so many lines that begins afresh."""
    given, output = folder / f"in-{lines}.jsonl", folder / f"out-{lines}.jsonl"
    with given.open("w", encoding="utf-8") as file:
        for number in range(lines):
            body = {"prompt": f"line {number}", "max_tokens": 1 + number % 24, "temperature": 1}
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")
    start, peak = time.perf_counter(), 0.0
    flags = ("--model", "fake", "--input", str(given), "--output", str(output))
    with fake_batch.started(*flags) as running:
        while running.alive:
            peak = max(peak, _peak_mib(running.pid))
            time.sleep(0.05)
        ended = running.result()
    assert ended.code == 0, ended.err
    assert f"{lines:,} answered" in ended.err, ended.err
    return peak, time.perf_counter() - start


def _peak_mib(process: int) -> float:
    """The most that was ever resident; 0 of a process that is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text("ascii")
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, action="append", required=True)
    for lines in parser.parse_args().lines:
        with tempfile.TemporaryDirectory() as folder:
            peak, seconds = measure(lines, Path(folder))
            print(f"{lines:,} lines: {peak:.0f} MiB at most, {lines / seconds:,.0f} lines/s")


if __name__ == "__main__":
    main()
