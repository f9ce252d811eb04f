"""Three meshes, three tables, a tiny model that runs: killed half way, and gone on with."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoint.tiny_gguf import gguf_bytes, llama_tensors
from tiny_model import metadata

from tpuinfer.checkpoint.convert import convert
from tpuinfer.experiment import difference, load

MESHES, TABLES = ("1", "2", "2x1"), ("1d", "alike", "whole")

_SECONDS = 240

# Compiling is what takes the time here.
_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("sweep")
    one_layer = {name: one for name, one in llama_tensors().items() if "blk.1." not in name}
    model = made / "tiny.gguf"
    model.write_bytes(gguf_bytes({**metadata(), "llama.block_count": 1}, one_layer))
    convert(model, made / "tiny", "float32")
    (made / "alike.toml").write_text('preset = "1d"\n[fallback]\nmlp = "error"\n')
    (made / "whole.toml").write_text('[axes]\nvocab = ""\n')
    return made


def command(folder: Path, out: str, *more: str) -> list[str]:
    rules = ",".join(["1d", str(folder / "alike.toml"), str(folder / "whole.toml")])
    return [
        *(sys.executable, "-m", "tpuinfer.sweep", "--model", str(folder / "tiny")),
        *("--meshes", ",".join(MESHES), "--rules", rules, "--slots", "4x64", "--dtype", "float32"),
        *("--out", str(folder / out), "--reuse", "--cache-dir", str(folder / "cache"), *more),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": _FAST, "JAX_PLATFORMS": "cpu"}


def run(folder: Path, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, out, *more),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=_SECONDS,
    )


def killed_after(folder: Path, out: str, lines: int) -> None:
    """Start a sweep, and kill it as soon as its file has so many lines."""
    path, end = folder / out, time.monotonic() + _SECONDS
    with subprocess.Popen(
        command(folder, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def unbroken(folder):
    made = run(folder, "whole.jsonl")
    return load(folder / "whole.jsonl"), made


@pytest.fixture(scope="module")
def resumed(folder, unbroken):
    killed_after(folder, "killed.jsonl", 4)
    early = load(folder / "killed.jsonl")
    with open(folder / "killed.jsonl", "ab") as file:  # what a kill within a line leaves
        file.write(b'{"version": 1, "key": "')
    made = run(folder, "killed.jsonl", "--plots", str(folder / "killed"))
    return early, load(folder / "killed.jsonl"), made


def timeless(record):
    """A record without what two runs of the same differ in."""
    data = copy.deepcopy(record.as_json())
    del data["seconds"], data["compile_seconds"]
    for program in data["programs"].values():
        for name in ("measured_ms", "bound_ms", "bound", "limit"):
            assert program.pop(name) is not None
    return data


def test_the_same_records_as_an_unbroken_sweep(unbroken, resumed):
    whole, _ = unbroken
    early, found, _ = resumed
    assert 4 <= len(early) < 9
    assert found[: len(early)] == early
    assert [timeless(one) for one in found] == [timeless(one) for one in whole]


def test_every_cell_is_there_once_in_order(unbroken):
    records, made = unbroken
    named = [(one.mesh, one.cell["rules"]) for one in records]
    assert named == [(mesh, rules) for mesh in MESHES for rules in TABLES]
    assert all(one.ok for one in records), made.stderr
    assert "lies alike and has other bits" not in made.stderr


def test_logits_are_those_of_one_device_and_of_cells_that_lie_alike(unbroken):
    records, _ = unbroken
    by_name = {(one.mesh, one.cell["rules"]): one for one in records}
    for one in records:
        assert one.logits["max"] < 1e-3
        assert one.logits["top1"] == 1
        alone = (one.mesh, one.cell["rules"]) == ("1", "1d")
        assert one.logits["equal"] == (one.mesh == "1" or one.logits["max"] == 0)
        assert alone <= (one.logits["same_layout"] is None)
    assert by_name["2", "alike"].logits["same_layout"] == by_name["2", "1d"].key
    assert by_name["2", "alike"].logits["same_bits"] is True
    assert by_name["2", "1d"].layout != by_name["2x1", "1d"].layout
    apart = difference(by_name["1", "1d"], by_name["2", "1d"])
    assert apart.max == by_name["2", "1d"].logits["max"]
    assert not np.isnan(apart.mean)


def test_figures_are_measured_or_unknown(unbroken):
    records, _ = unbroken
    for one in records:
        assert one.where["how"] == "ran"
        assert one.where["simulated"] == (one.mesh != "1")
        assert one.decode["measured_ms"]["median"] > one.decode["bound_ms"] > 0
        assert one.chunk["measured_ms"]["samples"] == 5
        assert one.decode["traffic_bytes"] is None
        assert one.hbm["weights"] > 0
        assert one.hbm["temporaries"] > 0
    counts = {
        (one.mesh, one.cell["rules"]): sum(
            kind["count"] for kind in one.decode["collectives"].values()
        )
        for one in records
    }
    assert counts["1", "1d"] == 0
    assert counts["2", "1d"] == counts["2", "alike"] > counts["2", "whole"] > 0
    weights = {(one.mesh, one.cell["rules"]): one.hbm["weights"] for one in records}
    assert weights["2", "1d"] < weights["2", "whole"] < weights["1", "1d"]


def test_the_table_and_the_picture_are_there(folder, resumed):
    _, _, made = resumed
    assert made.stdout.splitlines()[-1] == f"drawn: {folder / 'killed.png'}"
    assert (folder / "killed.png").stat().st_size > 20_000
    assert "simulated devices share" in made.stdout
    assert sum(line.startswith("*") for line in made.stdout.splitlines()) == 1
