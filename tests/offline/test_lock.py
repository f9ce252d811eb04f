import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from object_storage import object_storage

from tpuinfer.offline.disk import place
from tpuinfer.offline.lock import Lock, _ObjectLock
from tpuinfer.offline.task import BatchError

URL = "gs://bucket/out.jsonl.lock"
HOLDER = """
import sys, time
from tpuinfer.offline.lock import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl.lock"


@pytest.fixture
def storage(monkeypatch):
    return object_storage(monkeypatch)


def test_a_second_one_is_refused_and_told_who_holds_it(path):
    with Lock(path):
        held = rf"process {os.getpid()} on {socket.gethostname()} since 20\d\d-.*; one writer"
        with pytest.raises(BatchError, match=held) as refusal:
            Lock(path)
        assert "\n" not in str(refusal.value)
    with Lock(path) as lock:
        lock.check()
        lock.close()
        lock.close()
        Lock(path).close()
    assert path.exists(), "the file stays: removing it would let two hold a lock of one name"


def test_the_lock_of_another_process_is_free_when_that_is_killed(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BatchError, match=f"held by process {holder.pid} on "):
            Lock(path)
        holder.kill()
    Lock(path).close()


def test_a_shorter_name_leaves_nothing_of_a_longer_one(path):
    path.write_text(json.dumps({"pid": 1, "host": "x" * 500}))
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_holder_that_has_not_said_its_name_holds_it_all_the_same(path):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BatchError, match="held by another process; one writer"):
            Lock(path)


def test_where_there_is_no_flock_it_is_refused(path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BatchError, match=r"cannot be locked \(No locks available\)"):
        Lock(path)


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_folder_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(BatchError, match=rf"{tmp_path / name}: is no folder; make it"):
        Lock(tmp_path / name / "out.jsonl.lock")


class Clock:
    """Seconds that pass when they are slept."""

    def __init__(self):
        self.now = 1000.0
        self.while_asleep = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for action in self.while_asleep:
            action()
        self.while_asleep = []


def object_lock(clock, **options):
    return _ObjectLock(place(URL), clock=clock, sleep=clock.sleep, **options)


def test_an_object_that_is_young_is_refused(storage):
    clock = Clock()
    lock = object_lock(clock)
    clock.now += 100
    with pytest.raises(BatchError, match=r"which was there 102 s ago.*wait 18 s or delete"):
        object_lock(clock)
    clock.now += 19
    other = object_lock(clock)  # the first one's process is dead, for all that can be seen
    other.close()
    assert storage.objects() == {}
    lock.close()


def test_closing_gives_the_object_back(storage):
    clock = Clock()
    object_lock(clock).close()
    assert storage.objects() == {}
    object_lock(clock).close()


def test_of_two_at_once_only_the_later_one_goes_on(storage):
    clock = Clock()
    taken = []
    clock.while_asleep = [lambda: _write(storage, "other", clock.now)]
    with pytest.raises(BatchError, match="held by process 1 on there"):
        taken.append(object_lock(clock))
    assert json.loads(storage.objects()["/bucket/out.jsonl.lock"])["token"] == "other"


def _write(storage, token, touched):
    record = {"pid": 1, "host": "there", "since": "today", "token": token, "touched": touched}
    storage.pipe("/bucket/out.jsonl.lock", json.dumps(record).encode())


def test_the_holder_touches_it_again_and_again(storage):
    clock = Clock()
    lock = object_lock(clock, beat_seconds=0.01)
    clock.now += 500
    for _ in range(500):
        if _touched(storage) == clock.now:
            break
        threading.Event().wait(0.01)
    assert _touched(storage) == clock.now
    lock.check()
    lock.close()


def _touched(storage):
    return json.loads(storage.objects()["/bucket/out.jsonl.lock"] or "{}").get("touched")


def test_a_holder_learns_that_its_lock_was_taken(storage):
    clock = Clock()
    lock = object_lock(clock, beat_seconds=0.01)
    _write(storage, "other", clock.now)
    lock._thread.join(5)
    with pytest.raises(BatchError, match=r"was taken by process 1 on there.*stays: run the same"):
        lock.check()
    lock.close()
    assert storage.objects(), "another one's lock is not removed"


def test_a_holder_that_cannot_reach_the_storage_gives_up_before_others_may(storage):
    clock = Clock()
    lock = object_lock(clock, beat_seconds=0.01)
    storage.failures = [OSError("gone")] * 10_000
    threading.Event().wait(0.05)
    lock.check()
    clock.now += 121
    lock._thread.join(5)
    with pytest.raises(BatchError, match=r"not written for two minutes \(gone\)"):
        lock.check()
    lock.close()


def test_the_path_says_which_kind_of_lock_it_is(storage, monkeypatch):
    monkeypatch.setattr("tpuinfer.offline.lock._SETTLE_SECONDS", 0.0)
    with Lock(URL) as lock:
        lock.check()
        with pytest.raises(BatchError, match="delete this object"):
            Lock(URL)
    assert storage.objects() == {}


def test_a_storage_that_cannot_be_written_is_refused(storage):
    storage.failures = [OSError("read-only")]
    with pytest.raises(BatchError, match=r"cannot be written \(read-only\)"):
        object_lock(Clock())
