import errno
import fcntl
import json
import logging
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tpuinfer.offline.journal import Journal
from tpuinfer.offline.task import BatchError

WRITER = Path(__file__).with_name("append_forever.py")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def journal(path):
    journal = Journal.open(path)
    yield journal
    journal.close()


def held(path):
    """The lines that a journal at `path` holds when it is opened, and the offsets it tells."""
    journal = Journal.open(path)
    try:
        return list(journal.lines())
    finally:
        journal.close()


def failing(monkeypatch, name, error, *, after=0):
    """From its call number `after` on, os.`name` raises; the calls so far are in the list."""
    calls = []
    true = getattr(os, name)

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise OSError(error, os.strerror(error))
        return true(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return calls


def test_lines_come_back_where_they_were_put(journal, path):
    lines = [b'{"a":1}', b"", '{"b":"\u2028 \xe9"}'.encode(), b"x" * 200_000]
    offsets = [journal.append(line) for line in lines]
    assert list(journal.lines()) == list(zip(offsets, lines, strict=True))
    assert [journal.read(o, len(x)) for o, x in zip(offsets, lines, strict=True)] == lines
    assert path.read_bytes() == b"".join(line + b"\n" for line in lines)


def test_a_line_is_one_write_to_a_file_that_appends(journal, path, monkeypatch):
    calls = failing(monkeypatch, "write", errno.EIO, after=1)
    with open(path, "ab") as other:
        other.write(b"foreign\n")
    journal.append(b"{}")
    assert [bytes(data) for _, data in calls] == [b"{}\n"]
    assert path.read_bytes() == b"foreign\n{}\n"


def test_a_line_break_within_a_line_is_refused(journal):
    with pytest.raises(ValueError, match="no line break"):
        journal.append(b'{"a":\n1}')


@pytest.mark.parametrize(
    ("torn", "kept"),
    [
        (b'{"a":1}\n{"b":2}\n{"c"', 2),
        (b'{"a":1}\n{"b":2}\n{"c":3}', 2),  # whole, but for its end
        (b'{"a":1}\n' + b"\0" * 70_000, 1),  # the length outlived the content
        (b'{"a":1}\n{"b"' + b"\0" * 9000 + b'}\n{"c"', 1),
        (b'{"a":1}\n' + b"\0" * 70_000 + b'{"c":3}\n', 1),
        (b'{"a"', 0),
        (b"\0", 0),
        (b"\n\n", 2),
        (b"", 0),
    ],
)
def test_what_is_torn_is_cut_when_opened(path, torn, kept, caplog):
    path.write_bytes(torn)
    whole = b"".join(line + b"\n" for line in torn.split(b"\n")[:kept])
    journal = Journal.open(path)
    assert path.read_bytes() == whole
    assert journal.append(b"{}") == len(whole)
    journal.close()
    assert path.read_bytes() == whole + b"{}\n"
    cut = len(torn) - len(whole)
    assert ([f"{cut} bytes are cut" in r.getMessage() for r in caplog.records] == [True]) == (
        cut > 0
    )


def test_zeros_between_whole_lines_are_not_cut(path):
    whole = b'{"a":1}\n\0\0\n{"c":3}\n'
    path.write_bytes(whole)
    assert len(held(path)) == 3
    assert path.read_bytes() == whole


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_line_that_was_written_in_part_is_cut_off_again(path, monkeypatch, error):
    journal = Journal.open(path)
    for number in range(3):
        journal.append(b'{"n":%d}' % number)
    whole, write = path.read_bytes(), os.write

    def half(handle, data):
        write(handle, data[: len(data) // 2])
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(
        BatchError, match="3 lines of this run and all before them are safe"
    ) as first:
        journal.append(b'{"n":3}')
    assert os.strerror(error) in str(first.value)
    assert "run the same command again" in str(first.value)
    assert "\n" not in str(first.value)
    assert path.read_bytes() == whole
    monkeypatch.undo()
    for later in (lambda: journal.append(b"{}"), journal.flush):
        with pytest.raises(BatchError) as again:
            later()
        assert str(again.value) == str(first.value)
    journal.close()
    assert path.read_bytes() == whole


def test_what_is_safe_is_told_without_reading_the_file(path, monkeypatch):
    path.write_bytes(b"{}\n" * 1000)
    journal = Journal.open(path)
    journal.append(b"{}")
    failing(monkeypatch, "write", errno.ENOSPC)
    for name in ("pread", "read"):
        failing(monkeypatch, name, errno.EIO)
    with pytest.raises(BatchError, match="1 lines of this run and all before them are safe"):
        journal.append(b"{}")
    journal.close()


def test_a_short_write_goes_on_to_its_end_or_its_reason(path, monkeypatch):
    journal = Journal.open(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    journal.append(b"0123456789")
    assert path.read_bytes() == b"0123456789\n"
    failing(monkeypatch, "write", errno.ENOSPC, after=2)
    with pytest.raises(BatchError, match="1 lines of this run and all before them are safe"):
        journal.append(b"abcdefghij")
    assert path.read_bytes() == b"0123456789\n"
    journal.close()


def test_where_even_the_cut_fails_the_next_start_makes_it(path, monkeypatch, caplog):
    journal = Journal.open(path)
    journal.append(b'{"a":1}')
    failing(monkeypatch, "ftruncate", errno.EIO)
    true = os.write

    def half(handle, data):
        true(handle, data[:4])
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(BatchError, match="1 lines of this run and all before them are safe"):
        journal.append(b'{"b":2}')
    assert "the next start cuts it off" in caplog.text
    journal.close()
    monkeypatch.undo()
    assert held(path) == [(0, b'{"a":1}')]


def test_fsync_is_due_by_count_and_never_on_the_callers_thread(path, monkeypatch):
    threads = []
    synced = threading.Semaphore(0)

    def fsync(handle):
        threads.append(threading.current_thread())
        synced.release()

    journal = Journal.open(path, sync_lines=5, sync_seconds=3600)
    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(4):
        journal.append(b"{}")
    assert not synced.acquire(timeout=0.1)
    journal.append(b"{}")
    assert synced.acquire(timeout=5)
    for _ in range(4):
        journal.append(b"{}")
    assert not synced.acquire(timeout=0.1)
    journal.flush()
    assert synced.acquire(timeout=5)
    assert threading.current_thread() not in threads
    journal.close()


def test_fsync_is_due_by_time(path, monkeypatch):
    synced = threading.Semaphore(0)
    journal = Journal.open(path, sync_lines=1000, sync_seconds=0.05)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.release())
    for _ in range(2):
        journal.append(b"{}")
        assert synced.acquire(timeout=5)
    assert not synced.acquire(timeout=0.2), "nothing waits, so nothing is due"
    journal.close()


def test_each_wait_begins_anew(path, monkeypatch):
    synced = threading.Semaphore(0)
    journal = Journal.open(path, sync_lines=1000, sync_seconds=0.3)
    monkeypatch.setattr(os, "fsync", lambda handle: synced.release())
    journal.append(b"{}")
    journal.flush()
    assert synced.acquire(timeout=5)
    time.sleep(0.35)
    journal.append(b"{}")
    assert not synced.acquire(timeout=0.1), "this line has not waited"
    assert synced.acquire(timeout=5)
    journal.close()


def test_a_caller_does_not_wait_for_a_slow_fsync(path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def fsync(handle):
        begun.set()
        assert go_on.wait(10)

    journal = Journal.open(path, sync_lines=1)
    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(b"{}")
    assert begun.wait(5)
    for _ in range(100):
        journal.append(b"{}")  # would never return if it waited
    go_on.set()
    journal.close()


def test_a_failed_fsync_is_told_by_the_next_append_and_ever_after(path, monkeypatch):
    journal = Journal.open(path, sync_lines=1, sync_seconds=3600)
    journal.append(b'{"a":1}')
    journal.flush()
    failing(monkeypatch, "fsync", errno.EIO)
    journal.append(b'{"b":2}')
    with pytest.raises(
        BatchError, match=r"made durable .*; 1 lines of this run and all before them are safe"
    ):
        journal.flush()
    monkeypatch.undo()
    for later in (lambda: journal.append(b"{}"), journal.flush, journal.close):
        with pytest.raises(BatchError, match="could not be made durable"):
            later()


@pytest.mark.parametrize("bounds", [{"sync_lines": 0}, {"sync_seconds": -1.0}])
def test_bounds_that_are_nothing_are_refused(path, bounds):
    with pytest.raises(BatchError, match="more than nothing"):
        Journal.open(path, **bounds)


def test_the_name_of_a_new_file_is_durable_too(path, monkeypatch):
    synced = []
    true = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), true(handle)),
    )
    Journal.open(path).close()
    assert str(path.parent) in synced


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(BatchError, match="cannot be opened"):
        Journal.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BatchError, match="no regular file"):
        Journal.open(tmp_path / "pipe")
    with pytest.raises(BatchError, match="No such file"):
        Journal.open(tmp_path / "absent" / "out.jsonl")


def test_a_second_journal_of_one_file_is_refused(path):
    journal = Journal.open(path)
    journal.append(b"1")
    for _ in range(2):
        with pytest.raises(BatchError, match="another batch writes to this file"):
            Journal.open(path)
        journal.rewrite([b"2"])  # its new file is claimed as well
    journal.close()
    assert held(path) == [(0, b"2")]


def test_a_file_that_was_replaced_while_it_was_opened_is_refused(path, monkeypatch):
    true = fcntl.flock

    def replaced(handle, how):
        true(handle, how)
        path.with_name("other").touch()
        os.replace(path.with_name("other"), path)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(BatchError, match="another batch writes to this file"):
        Journal.open(path)


def test_a_disk_without_flock_is_for_the_lock_to_refuse(path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    Journal.open(path).close()


def test_a_link_is_followed_and_stays(tmp_path):
    real = tmp_path / "real.jsonl"
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    journal = Journal.open(link)
    journal.append(b"1")
    journal.rewrite([b"2"])
    journal.close()
    assert link.is_symlink()
    assert real.read_bytes() == b"2\n"


def test_a_closed_journal_writes_to_no_other_file(path, tmp_path):
    journal = Journal.open(path)
    journal.close()
    journal.close()
    with open(tmp_path / "innocent", "wb"), pytest.raises(BatchError):
        journal.append(b"{}")
    assert (tmp_path / "innocent").read_bytes() == b""


def test_rewriting_replaces_all_and_goes_on(journal, path):
    for number in range(5):
        journal.append(b"%d" % number)
    path.chmod(0o600)
    journal.rewrite(line for _, line in reversed(list(journal.lines())))
    assert path.read_bytes() == b"4\n3\n2\n1\n0\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert journal.append(b"5") == 10
    assert journal.read(10, 1) == b"5"
    assert [line for _, line in journal.lines()] == [b"4", b"3", b"2", b"1", b"0", b"5"]


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
def test_a_rewrite_that_fails_leaves_what_was(path, monkeypatch, name):
    journal = Journal.open(path)
    for number in range(5):
        journal.append(b"%d" % number)
    journal.flush()
    before = path.read_bytes()
    failing(monkeypatch, name, errno.ENOSPC)
    with pytest.raises(BatchError, match="it is as it was"):
        journal.rewrite([b"new"])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    journal.append(b"5")
    journal.close()
    assert len(held(path)) == 6


def test_a_rewrite_whose_lines_end_badly_leaves_what_was(journal, path):
    journal.append(b"1")

    def lines():
        yield b"2"
        raise BatchError("no more")

    with pytest.raises(BatchError, match="no more"):
        journal.rewrite(lines())
    assert path.read_bytes() == b"1\n"
    assert os.listdir(path.parent) == [path.name]


def test_what_a_killed_rewrite_left_is_removed(path):
    path.write_bytes(b"1\n")
    left = path.with_name("out.jsonl.new")
    left.write_bytes(b"2\n")
    assert held(path) == [(0, b"1")]
    assert not left.exists()


def test_a_line_that_somebody_changed_is_not_read_as_another(journal, path):
    journal.append(b"0123456789")
    path.write_bytes(b"0123\n56789\n")
    with pytest.raises(BatchError, match="not there any more"):
        journal.read(0, 10 - 2)
    with pytest.raises(BatchError, match="not there any more"):
        journal.read(4, 100)


def started(path, first, *limit):
    command = [sys.executable, str(WRITER), str(path), str(first), *map(str, limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_file_that_may_not_grow_keeps_its_whole_lines(path):
    with started(path, 0, 100_000) as writer:
        told, said = writer.communicate(timeout=60)
    assert writer.returncode == BatchError.exit_code
    assert "File too large" in said.decode()
    numbers = [json.loads(line)["n"] for line in path.read_bytes().splitlines()]
    assert numbers == [int(line) for line in told.split()] == list(range(len(numbers)))
    assert f"{len(numbers)} lines of this run and all before them are safe" in said.decode()
    assert path.read_bytes().endswith(b"}\n")
    assert path.stat().st_size <= 100_000


def test_a_kill_at_any_moment_loses_no_line_that_was_told(path):
    rng = random.Random(6)
    first = 0
    for _ in range(20):
        with started(path, first) as writer:
            assert writer.stdout is not None
            told = int(writer.stdout.readline())  # it writes now
            time.sleep(rng.uniform(0.0, 0.03))
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split(b"\n")[:-1])])
        lines = [json.loads(line) for _, line in held(path)]
        assert [line["n"] for line in lines] == list(range(len(lines)))
        assert told < len(lines) <= told + 2, "all that was told, and at most the one under way"
        assert all(len(line["text"]) == line["n"] * 37 % 900 for line in lines)
        first = len(lines)
    assert first > 200


def test_many_lines_take_little_time(path, caplog):
    caplog.set_level(logging.WARNING)
    journal = Journal.open(path)
    line = b"x" * 400
    start = resource.getrusage(resource.RUSAGE_THREAD).ru_utime
    for _ in range(10_000):
        journal.append(line)
    spent = resource.getrusage(resource.RUSAGE_THREAD).ru_utime - start
    journal.close()
    assert spent < 1.0, "a hundred microseconds a line would be far too much"
    assert path.stat().st_size == 401 * 10_000
