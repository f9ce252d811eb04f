"""Who has the accelerator: as checks say it, and as /proc tells it."""

import os

import pytest
from machines import laptop, lines, tpu_vm

from tpuinfer.diagnosis import holders
from tpuinfer.diagnosis.facts import Holder
from tpuinfer.diagnosis.findings import Level
from tpuinfer.diagnosis.held import LOCK, check, holds_tpu


def test_a_free_tpu_is_said_to_be_free():
    (line,) = lines(check, tpu_vm(), Level.OK)
    assert line == "held: no other process has a device open; "
    (line,) = lines(check, tpu_vm(hidden=3), Level.OK)
    assert "3 processes of others could not be looked into" in line


def test_a_machine_without_accelerators_has_nothing_to_hold():
    assert lines(check, laptop()) == []


def test_a_held_tpu_fails_once_a_process():
    held = tuple(Holder(f"/dev/vfio/{chip}", 41, "python serve.py") for chip in (0, 1))
    (line,) = lines(check, tpu_vm(holders=held), Level.FAIL)
    assert "process 41 (python serve.py) has /dev/vfio/0, /dev/vfio/1 open" in line
    assert "kill 41" in line


def test_a_gpu_may_be_shared():
    held = (Holder("/dev/nvidia0", 41, "python"),)
    facts = laptop(gpu_files=("/dev/nvidia0",), holders=held)
    (line,) = lines(check, facts, Level.WARN)
    assert "process 41 (python) has /dev/nvidia0 open" in line
    assert lines(check, facts, Level.FAIL) == []


@pytest.mark.parametrize(
    ("owner", "user", "fails"), [(0, 7, 1), (7, 7, 0), (8, 0, 0), (None, 7, 0)]
)
def test_a_lock_file_of_another_user_is_in_the_way(owner, user, fails):
    found = lines(check, laptop(lock_owner=owner, user=user), Level.FAIL)
    assert len(found) == fails
    assert all(f"{LOCK} belongs to user {owner}" in line for line in found)


@pytest.mark.parametrize(
    ("path", "asks"),
    [("/dev/accel0", True), ("/dev/vfio/3", True), ("/dev/nvidia0", False), (LOCK, False)],
)
def test_only_a_tpu_is_not_asked_for_while_it_is_held(path, asks):
    assert holds_tpu([Holder(path, 1, "x")]) is asks
    assert not holds_tpu([])


@pytest.fixture
def proc(tmp_path):
    """Makes processes: id, command line, and what they have open."""

    def make(pid, words, *targets):
        folder = tmp_path / f"proc/{pid}"
        (folder / "fd").mkdir(parents=True)
        (folder / "cmdline").write_bytes("\0".join([*words, ""]).encode())
        (folder / "comm").write_text(f"{words[0] if words else 'kernel'}\n")
        for number, target in enumerate(targets):
            (folder / f"fd/{number}").symlink_to(target)
        return tmp_path

    return make


def test_processes_that_hold_devices_are_found(proc):
    proc(9, ["/usr/bin/python3", "serve.py"], "/dev/null", "/dev/accel1", "/dev/accel1")
    proc(10, ["bash"], "/dev/pts/1", "socket:[1]", "/dev/vfio/vfio", "/dev/accel0 (deleted)")
    proc(11, ["x"], "/dev/nvidia0", "/dev/nvidiactl", LOCK)
    root = proc(12, [], "/dev/vfio/2")
    found, hidden = holders.find(root)
    assert found == [
        Holder("/dev/accel1", 9, "python3 serve.py"),
        Holder("/dev/nvidia0", 11, "x"),
        Holder(LOCK, 11, "x"),
        Holder("/dev/vfio/2", 12, "kernel"),
    ]
    assert hidden == 0


def test_our_own_processes_and_harmless_ones_do_not_count(proc):
    proc(9, ["python"], "/dev/accel0")
    root = proc(10, ["/usr/bin/nvidia-persistenced"], "/dev/nvidia0")
    assert holders.find(root, own=frozenset({9})) == ([], 0)


def test_a_long_command_is_cut_and_one_without_a_trace_is_let_go(proc):
    root = proc(9, ["python", "y" * 200], "/dev/accel0")
    (root / "proc/11").mkdir()
    (found,), _ = holders.find(root)
    assert len(found.command) == 80


def test_what_cannot_be_looked_into_is_counted(proc, monkeypatch):
    root = proc(9, ["python"], "/dev/accel0")

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(os, "readlink", refuse)
    assert holders.find(root) == ([], 1)
