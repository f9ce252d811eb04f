"""`python -m tpuinfer.bench` from the outside."""

import json
from pathlib import Path

import doors
import pytest
import tiny_model

MODES = "decode, prefill, host, batch, server"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("bench")
    checkpoint = tiny_model.write_checkpoint(folder / "tiny")
    return ("--model", str(checkpoint), "--cache-dir", str(folder / "cache"))


def test_decode_as_json(model):
    done = doors.run(
        "bench", "decode", *model, "--batch=1,2", "--new-tokens=6", "--context=64", "--rounds=1",
        "--json=-", "--mesh=auto",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "mesh auto is 1: a CPU is one device" in done.err
    report = json.loads(done.out)
    assert [row["case"]["live_slots"] for row in report["rows"]] == [1, 2]
    assert report["settings"]["slots"] == 2
    assert report["settings"]["context"] == 64
    assert report["rows"][0]["case"]["prompt_tokens"] == 32


def test_schemes_in_turn(model):
    done = doors.run(
        "bench", "decode", *model, "--schemes=none w8a8/int8", "--batch=2", "--new-tokens=6",
        "--context=64", "--rounds=1", "--json=-",
    )  # fmt: skip
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["rows"]
    assert second["figure"] == "decode step, 2 live, w8a8/int8"
    assert second["weight_bytes"] < first["weight_bytes"] / 1.8
    assert second["kv_bytes"] < first["kv_bytes"] / 3
    assert second["peer"] == first["median"]


def test_host_as_a_table_and_a_file(model, tmp_path: Path):
    file = tmp_path / "host.json"
    done = doors.run("bench", "host", *model, "--slots=4", "--rounds=1", "--json", str(file))
    assert done.code == 0, done.err
    assert "engine step, 4 streaming" in done.out
    assert json.loads(file.read_text("utf-8"))["rows"][0]["case"] == {"slots": 4}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), f"say which of {MODES}"),
        (("decod",), f"'decod' is not one of {MODES}; nearest: decode"),
        (("decode", "prefill"), "'prefill' is one word too many"),
        (("decode", "--lengths=long-tailed"), "--lengths means nothing to bench decode"),
        (("prefill", "--batch=2"), "--batch means nothing to bench prefill"),
        (("host", "--dtype=float32"), "--dtype means nothing to bench host"),
        (("decode", "--verify"), "--verify means nothing to bench decode"),
        (("decode", "--batch=1,x"), "batch is '1,x'"),
        (("decode", "--batch=0"), "batch is 0: it must be at least 1"),
        (("prefill", "--rounds=0"), "rounds is 0: it must be at least 1"),
        (("batch", "--schemes=none int8"), "--schemes means nothing to bench batch"),
        (("host", "--weights=int8"), "--weights means nothing to bench host"),
        (("server", "--ring=int8"), "--ring means nothing to bench server"),
        (("decode", "--schemes=int8"), "schemes is 'int8': write at least two"),
        (("decode", "--schemes=none int8", "--weights=int8"), "--weights and --schemes both say"),
        (("decode", "--against=vllm"), "against is 'vllm'"),
        (("decode", "--random-weights=llama-4"), "random-weights is 'llama-4'"),
        (("host", "--random-weights=llama-4"), "random-weights is 'llama-4'"),
    ],
)
def test_wrong_command_lines(flags, words):
    done = doors.run("bench", *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("tpuinfer: ")
    assert words in done.err
    assert done.err.count("\n") == 1
