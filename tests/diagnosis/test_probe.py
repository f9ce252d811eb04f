"""Asking jax in a process of its own: answers, deaths and silence."""

import json
import os
import sys

from tpuinfer.diagnosis import probe
from tpuinfer.diagnosis.facts import Device

ONE = {
    "index": 3,
    "platform": "tpu",
    "kind": "TPU v4",
    "process": 1,
    "coords": [0, 1, 2],
    "bytes_limit": 5,
    "bytes_in_use": 0,
}


def test_an_answer_is_read_whatever_came_before_it():
    out = "libtpu talks\n" + json.dumps({"devices": [ONE], "processes": 2}) + "\n"
    probed = probe.read(0, out, "and talks", 1.5)
    assert probed.devices == (Device(3, "tpu", "TPU v4", 1, (0, 1, 2), 5, 0),)
    assert (probed.processes, probed.error, probed.seconds) == (2, None, 1.5)


def test_an_error_is_handed_on():
    assert probe.read(0, '{"error": "RuntimeError: no"}', "").error == "RuntimeError: no"


def test_a_death_is_told_with_the_last_words():
    assert probe.read(-6, "", "one\nbusy\n").error == "jax ended with signal SIGABRT: busy"
    assert probe.read(3, "x", "").error == "jax ended with exit code 3: it said nothing"


def test_jax_is_asked_here_and_answers():
    probed = probe.ask({**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}, 60)
    assert probed.error is None
    assert [(one.index, one.platform, one.kind) for one in probed.devices] == [
        (0, "cpu", "cpu"),
        (1, "cpu", "cpu"),
    ]
    assert 0 < probed.seconds < 60


def test_a_backend_that_there_is_not_is_an_error():
    probed = probe.ask({**os.environ, "JAX_PLATFORMS": "nonsense"}, 60)
    assert probed.devices == ()
    assert "'nonsense' is not in the list of known backends" in (probed.error or "")
    assert not probed.timed_out


def test_silence_ends_after_the_time(monkeypatch, tmp_path):
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 30\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    probed = probe.ask(dict(os.environ), 0.2)
    assert (probed.timed_out, probed.error) == (True, "jax did not answer in 0.2 s")
