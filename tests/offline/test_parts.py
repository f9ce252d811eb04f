import threading
import time

import pytest
from object_storage import object_storage

from tpuinfer.offline import parts
from tpuinfer.offline.journal import Journal
from tpuinfer.offline.parts import Parts, holds_lines, open_journal
from tpuinfer.offline.task import BatchError

URL = "gs://bucket/out.jsonl"


@pytest.fixture
def storage(monkeypatch):
    return object_storage(monkeypatch)


@pytest.fixture(params=["folder", "objects"])
def home(request, tmp_path, storage):
    """Where parts are: the same code for a folder of this machine and for object storage."""
    return URL if request.param == "objects" else str(tmp_path / "out.jsonl")


def filled(home, count, **bounds):
    """Parts with `count` lines, and the offsets that were told of them."""
    journal = Parts.open(home, **{"sync_lines": 3, "sync_seconds": 3600, **bounds})
    offsets = [journal.append(b'{"n":%d}' % number) for number in range(count)]
    journal.flush()
    return journal, offsets


def names(journal):
    return sorted(path.name for path in journal.path.iterdir())


def test_each_part_has_so_many_lines_and_all_come_back(home):
    journal, offsets = filled(home, 8)
    assert names(journal) == [f"part-0000{number}.jsonl" for number in range(3)]
    assert (journal.path / "part-00001.jsonl").read_bytes() == b'{"n":3}\n{"n":4}\n{"n":5}\n'
    told = [(offset, b'{"n":%d}' % number) for number, offset in enumerate(offsets)]
    assert list(journal.lines()) == told
    assert [offset >> 40 for offset in offsets] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [journal.read(offset, len(line)) for offset, line in told] == [line for _, line in told]
    journal.close()


def test_a_restart_goes_on_with_the_next_part(home):
    filled(home, 4)[0].close()
    journal, offsets = filled(home, 2)
    assert offsets == [2 << 40, (2 << 40) + 8]
    assert [line[5:-1] for _, line in journal.lines()] == [b"0", b"1", b"2", b"3", b"0", b"1"]
    journal.close()


@pytest.mark.parametrize("rewrites", [False, True])
def test_a_writer_that_lost_its_lock_replaces_no_part(home, rewrites):
    first, _ = filled(home, 2)
    first.append(b"of the first")
    second = Parts.open(home)
    second.append(b"of the second")
    second.close()
    late = (lambda: first.rewrite([b"rewritten"])) if rewrites else first.close
    with pytest.raises(BatchError, match=r"part-00001\.jsonl: another batch has written this part"):
        late()
    with pytest.raises(BatchError, match="another batch"):
        first.append(b"more")
    found = [line for _, line in Parts.open(home).lines()]
    assert found == [b'{"n":0}', b'{"n":1}', b"of the second"]


def test_a_rewrite_replaces_no_part_of_another(home):
    first, _ = filled(home, 2)
    second, _ = filled(home, 1)
    with pytest.raises(BatchError, match=r"part-00001\.jsonl: another batch"):
        first.rewrite([b"rewritten"])
    assert len(list(Parts.open(home).lines())) == 3
    first.close()
    second.close()


def test_parts_are_read_in_the_order_of_their_numbers(home):
    journal, _ = filled(home, 1)
    (journal.path / "part-100000.jsonl").write_bytes(b"last\n")
    (journal.path / "part-99999.jsonl").write_bytes(b"before\n")
    (journal.path / "sorted.jsonl").write_bytes(b"no part\n")
    journal.close()
    again = Parts.open(home)
    assert [line for _, line in again.lines()] == [b'{"n":0}', b"before", b"last"]
    assert again.append(b"{}") >> 40 == 100001
    again.close()


def test_a_part_is_due_by_time(home):
    journal = Parts.open(home, sync_lines=1000, sync_seconds=0.05)
    journal.append(b"{}")
    journal.append(b"{}")
    deadline = time.monotonic() + 5
    while len(lines := list(journal.lines())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [line for _, line in lines] == [b"{}", b"{}"]
    journal.close()


def test_closing_writes_what_waits(home):
    journal = Parts.open(home)
    journal.append(b"{}")
    journal.close()
    journal.close()
    assert (journal.path / "part-00000.jsonl").read_bytes() == b"{}\n"


def test_appending_does_not_wait_for_the_storage(home, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    true = parts.put

    def slow(path, data):
        begun.set()
        assert go_on.wait(10)
        true(path, data)

    monkeypatch.setattr(parts, "put", slow)
    journal = Parts.open(home, sync_lines=2)
    journal.append(b"0")
    journal.append(b"1")
    assert begun.wait(5)
    for number in range(2, 9):
        journal.append(b"%d" % number)  # would never return if it waited
    go_on.set()
    journal.close()
    assert [line for _, line in journal.lines()] == [b"%d" % number for number in range(9)]


def test_what_waits_in_memory_is_bounded(home, monkeypatch):
    most = []
    true = parts.put

    def slow(path, data):
        time.sleep(0.001)
        most.append(len(data))
        true(path, data)

    monkeypatch.setattr(parts, "_MOST_WAITING", 1000)
    monkeypatch.setattr(parts, "put", slow)
    journal = Parts.open(home, sync_lines=5, sync_seconds=3600)
    for _ in range(100):
        journal.append(b"x" * 99)
        assert journal._waiting <= 1100
    journal.close()
    assert sum(most) == 100 * 100
    assert max(most) == 500


def test_a_storage_that_fails_is_asked_again(storage, monkeypatch, caplog):
    monkeypatch.setattr(parts, "_PAUSES", (0.001, 0.001))
    storage.failures = [OSError("busy"), RuntimeError("quota")]
    journal, _ = filled(URL, 2)
    assert storage.objects() == {"/bucket/out.jsonl/part-00000.jsonl": b'{"n":0}\n{"n":1}\n'}
    assert "busy" in caplog.text
    assert "quota" in caplog.text
    journal.close()


def test_a_storage_that_stays_away_ends_the_run_with_what_is_safe(storage, monkeypatch):
    monkeypatch.setattr(parts, "_PAUSES", (0.001,))
    journal, _ = filled(URL, 3)
    storage.failures = [OSError("gone")] * 9
    journal.append(b"{}")
    with pytest.raises(BatchError, match=r"part-00001.*gone.*before it are safe, its 1 lines"):
        journal.flush()
    for later in (lambda: journal.append(b"{}"), journal.flush, journal.close):
        with pytest.raises(BatchError, match="gone"):
            later()
    assert len(storage.failures) == 7, "nothing more was tried"
    assert len(list(Parts.open(URL).lines())) == 3


def test_an_object_that_arrived_in_part_is_no_part(storage, monkeypatch):
    monkeypatch.setattr(parts, "_PAUSES", ())
    true = storage._open

    def lossy(path, mode="rb", **options):
        file = true(path, mode, **options)
        if mode == "wb":
            file.write = lambda data: type(file).write(file, data[:3])
        return file

    monkeypatch.setattr(storage, "_open", lossy)
    journal = Parts.open(URL)
    journal.append(b"0123456789")
    with pytest.raises(BatchError, match="3 of 11 bytes arrived"):
        journal.close()
    assert storage.objects() == {}


def test_a_torn_part_is_refused_by_name(home):
    journal, _ = filled(home, 3)
    (journal.path / "part-00001.jsonl").write_bytes(b'{"n":3}\n{"n"')
    journal.close()
    with pytest.raises(BatchError, match=r"part-00001\.jsonl: its last line is torn"):
        list(Parts.open(home).lines())


def test_a_part_that_somebody_changed_is_not_read_as_another(home):
    journal, offsets = filled(home, 3)
    (journal.path / "part-00000.jsonl").write_bytes(b'{"n":0}\n')
    with pytest.raises(BatchError, match="not there any more"):
        journal.read(offsets[1], 7)
    journal.close()


def test_rewriting_leaves_one_part_and_goes_on(home):
    journal, _ = filled(home, 8)
    journal.rewrite(line for offset, line in journal.lines() if offset >> 40 != 1)
    assert names(journal) == ["part-00003.jsonl"]
    assert [line[5:-1] for _, line in journal.lines()] == [b"0", b"1", b"2", b"6", b"7"]
    assert journal.append(b"{}") == 4 << 40
    journal.flush()
    journal.rewrite([])
    assert not list(Parts.open(home).lines())
    journal.close()


def test_a_rewrite_that_is_killed_has_lost_nothing(home, monkeypatch):
    journal, _ = filled(home, 6)
    kept = [line for _, line in journal.lines()][3:]
    kind, true = type(journal.path), type(journal.path).unlink

    def killed(path, *args, **kwargs):
        if path.name == "part-00001.jsonl":
            raise OSError("killed")
        true(path, *args, **kwargs)

    monkeypatch.setattr(kind, "unlink", killed)
    with pytest.raises(BatchError, match="no line is lost"):
        journal.rewrite(iter(kept))
    left = [line for _, line in Parts.open(home).lines()]
    assert left == kept + kept, "the old part that stayed, and then the new one"


def test_sorted_lines_stand_beside_the_parts(home):
    journal, _ = filled(home, 4)
    backwards = [line for _, line in journal.lines()][::-1]
    size = sum(len(line) + 1 for line in backwards)
    journal.put_sorted(backwards, size)
    assert (journal.path / "sorted.jsonl").read_bytes().split(b"\n")[:-1] == backwards
    journal.put_sorted((1 / 0 for _ in backwards), size)  # it is there: none is asked for
    assert len(list(journal.lines())) == 4
    journal.close()


def test_the_path_says_which_kind_of_journal_it_is(tmp_path, storage):
    here = open_journal(str(tmp_path / "out.jsonl"), sync_lines=7)
    there = open_journal(URL, sync_seconds=0.01)
    assert isinstance(here, Journal)
    assert isinstance(there, Parts)
    here.close()
    there.close()


def test_whether_there_are_lines_is_known_without_touching(tmp_path, storage):
    assert not holds_lines(URL)
    assert not holds_lines(str(tmp_path / "absent.jsonl"))
    assert list(tmp_path.iterdir()) == []
    filled(URL, 1)[0].close()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "torn.jsonl").write_bytes(b"{")
    assert holds_lines(URL)
    assert not holds_lines(str(tmp_path / "empty.jsonl"))
    assert holds_lines(str(tmp_path / "torn.jsonl"))


def test_a_storage_without_its_driver_is_refused():
    with pytest.raises(BatchError, match="cannot be reached"):
        Parts.open("gs://bucket/out.jsonl")
