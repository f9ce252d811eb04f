"""The doctor's front door: what it prints here, and how it exits."""

import json
import os

import doors


def test_it_looks_at_this_machine(tmp_path):
    """Its lines are the JSON's checks; whether a check fails is up to the machine."""
    given = ("--cache-dir", str(tmp_path), "--probe-seconds", "60", "--json")
    done = doors.run("doctor", *given)
    assert done.err == ""
    said = json.loads(done.out)
    assert done.code == (0 if said["ok"] else 1)
    checks = {one["what"]: one for one in said["checks"]}
    assert {"versions", "devices", "mesh", "host", "compile cache", "model cache"} <= checks.keys()
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        assert checks["devices"]["found"].startswith("1 x cpu, after ")
    assert checks["compile cache"]["found"].startswith(f"{tmp_path}/compiled, not there yet")
    assert checks["model cache"]["found"].startswith(f"{tmp_path}, ")


def test_a_failure_is_a_line_and_an_exit_code(tmp_path):
    (tmp_path / "file").touch()
    done = doors.run("doctor", "--cache-dir", str(tmp_path / "file" / "below"))
    assert (done.code, done.err) == (1, "")
    (line,) = [line for line in done.out.splitlines() if line.startswith("FAIL")]
    assert "model cache" in line
    assert "name another with --cache-dir" in line


def test_what_means_nothing_to_it_is_refused():
    for flags, part in [
        (("--model", "x"), "--model means nothing to the doctor"),
        (("--probe-seconds", "0"), "probe-seconds is 0"),
        (("--modle", "x"), "Unknown command line flag"),
    ]:
        done = doors.run("doctor", *flags)
        assert (done.code, done.out) == (2, ""), done.err
        assert done.err.startswith("tpuinfer: ")
        assert part in done.err
