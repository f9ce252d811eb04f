import contextlib
import errno
import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_storage import object_storage

from tpuinfer.offline.index import Index
from tpuinfer.offline.ledger import Ledger
from tpuinfer.offline.task import BatchError, LineError, Task


class Lines:
    """An input of requests named by letters; "?" is a line that has no id."""

    def __init__(self, names: str) -> None:
        self.all = [
            Task(n, f"in.jsonl:{n + 1}", None, error=LineError("no id", code="missing"))
            if name == "?"
            else Task(n, f"in.jsonl:{n + 1}", name, "/v1/completions", b"{}")
            for n, name in enumerate(names)
        ]

    def tasks(self) -> Iterator[Task]:
        return iter(self.all)

    def __getitem__(self, name: str) -> Task:
        return next(task for task in self.all if (task.custom_id or "?") == name)


class Files:
    """Where a ledger has its journals, and what they hold."""

    def __init__(self, folder):
        self.output = f"{folder}/out.jsonl"
        self.errors = f"{folder}/out.errors.jsonl"

    def write(self, output="", errors="", lines=None):
        """Puts lines there, one for each name."""
        lines = lines or Lines("abcde?f")
        with open(self.output, "wb") as file:
            file.writelines(line(lines[name], ok=True) + b"\n" for name in output)
        with open(self.errors, "wb") as file:
            file.writelines(
                line(lines[name], ok=False, again=place) + b"\n"
                for place, name in enumerate(errors)
            )

    def answered(self):
        return "".join(record["custom_id"] for record in self.records(self.output))

    def failed(self):
        return "".join(record["custom_id"] or "?" for record in self.records(self.errors))

    @staticmethod
    def records(path):
        with open(path, "rb") as file:
            return [json.loads(found) for found in file]


def line(task, *, ok, again=0):
    """What stands in a journal of a task: something of another length for each."""
    record = {"custom_id": task.custom_id, "text": "x" * (task.position * 7 % 5)}
    if not ok:
        record |= {"line": task.where, "again": again}
    return json.dumps(record).encode()


@contextlib.contextmanager
def opened(files, lines, **options):
    """A ledger over the input, which is closed at the end."""
    with contextlib.closing(Index.build(lines)) as index:
        ledger = Ledger.open(files.output, files.errors, index, **options)
        with contextlib.closing(ledger):
            yield ledger


def refused(files, lines, words):
    """The files cannot be opened for this input, and `words` say why."""
    with pytest.raises(BatchError, match=words) as refusal, opened(files, lines):
        pass
    assert "\n" not in str(refusal.value)


def left(ledger, lines):
    """The names of what is still to do."""
    return "".join(t.custom_id or "?" for t in lines.tasks() if not ledger.is_done(t.position))


@pytest.fixture
def lines():
    return Lines("abcde?f")


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_what_is_recorded_is_done_now_and_after_a_restart(files, lines):
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "abcde?f"
        for name, ok in [("c", True), ("?", False), ("a", True), ("b", False)]:
            ledger.record(lines[name], line(lines[name], ok=ok), ok)
        assert left(ledger, lines) == "def"
    assert (files.answered(), files.failed()) == ("ca", "?b")
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "def"
        assert ledger.foreign == 0
        assert (ledger._index.done, ledger._index.failed) == (2, 2)
    with opened(files, lines, retry_errors=True) as ledger:
        assert left(ledger, lines) == "bde?f"
    assert (files.answered(), files.failed()) == ("ca", "?b")


def test_a_task_has_one_outcome(files, lines):
    with opened(files, lines) as ledger:
        ledger.record(lines["a"], line(lines["a"], ok=True), True)
        for ok in (True, False):
            with pytest.raises(ValueError, match=r"in\.jsonl:1 has an outcome"):
                ledger.record(lines["a"], line(lines["a"], ok=ok), ok)
    assert (files.answered(), files.failed()) == ("a", "")


def test_what_cannot_be_written_is_not_done(files, lines, monkeypatch):
    with opened(files, lines) as ledger:
        ledger.record(lines["a"], line(lines["a"], ok=True), True)
        monkeypatch.setattr(os, "write", _full)
        for ok in (True, False):
            with pytest.raises(BatchError, match="No space left on device"):
                ledger.record(lines["b"], line(lines["b"], ok=ok), ok)
        assert left(ledger, lines) == "bcde?f"
    assert (files.answered(), files.failed()) == ("a", "")


def _full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_answers_to_others_are_refused_and_named(files, lines):
    files.write(output="abcdf", errors="e?")
    refused(files, Lines("abef?"), r"out\.jsonl:3: 'c' is not in .*\(and 1 more lines\)")
    refused(files, Lines("abcdef"), r"out\.errors\.jsonl:2: 'in\.jsonl:6' is not in the inp")
    assert (files.answered(), files.failed()) == ("abcdf", "e?")


def test_answers_to_others_are_kept_where_that_is_accepted(files):
    files.write(output="cbda", errors="fe?")
    others = Lines("abeg")
    with opened(files, others, accept=True) as ledger:
        assert ledger.foreign == 3
        assert left(ledger, others) == "g"
        ledger.record(others["g"], line(others["g"], ok=True), True)
        ledger.sort()
        ledger.sort()
    assert (files.answered(), files.failed()) == ("abgcd", "fe")


def test_errors_known_by_place_alone_go_where_the_input_may_have_changed(files):
    for now, to_do in (("abc", "ac"), ("ab?", "a?")):
        files.write(errors="b?", lines=Lines("ab?"))
        with opened(files, Lines(now), accept=True) as ledger:
            assert left(ledger, Lines(now)) == to_do
            assert (ledger.foreign, ledger._index.failed) == (0, 1)
        assert files.failed() == "b"


@pytest.mark.parametrize("which", ["output", "errors"])
@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b'{"custom_id":"b","te', "is no JSON object"),
        (b'["b"]', "is no JSON object"),
        (b"", "is no JSON object"),
        (b'{"custom_id":"\xff"}', "is no JSON object"),
        (b"{}", "has no 'custom_id' that is a text"),
        (b'{"custom_id":7}', "has no 'custom_id' that is a text"),
        (b'{"custom_id":null}', "that is a text"),
        (b'{"custom_id":null,"line":7}', "that is a text"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(files, lines, which, damaged, why):
    files.write(output="ac", errors="de")
    path = getattr(files, which)
    with open(path, "rb") as file:
        first, second = file.read().splitlines()
    whole = first + b"\n" + damaged + b"\n" + second + b"\n"
    with open(path, "wb") as file:
        file.write(whole)
    refused(files, lines, f"{os.path.basename(path)}:2: .*{why}")
    with open(path, "rb") as file:
        assert file.read() == whole


def test_a_second_answer_is_refused(files, lines):
    files.write(output="abca")
    refused(files, lines, "'a' is answered twice, the second time in line 4")


def test_one_file_cannot_be_both(files, lines, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(files.output)
    files.errors = str(tmp_path / "link.jsonl")
    with pytest.raises(BatchError, match="go to two files"), opened(files, lines):
        pass


def test_two_ledgers_do_not_share_a_file(files, lines):
    with opened(files, lines):
        other = Files(os.path.dirname(files.output))
        other.output = files.output.replace("out", "other")
        refused(other, lines, "another batch writes to this file")


def test_an_answer_overtakes_an_error_and_the_last_error_those_before(files, lines):
    files.write(output="ac", errors="abd?abe?")
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "f"
    assert (files.answered(), files.failed()) == ("ac", "dbe?")
    assert [record["again"] for record in files.records(files.errors)] == [2, 5, 6, 7]


def test_errors_that_are_tried_again(files, lines):
    files.write(output="a", errors="bcd?")
    with opened(files, lines, retry_errors=True) as ledger:
        assert left(ledger, lines) == "bcde?f"
        ledger.record(lines["b"], line(lines["b"], ok=True), True)
        ledger.record(lines["c"], line(lines["c"], ok=False, again=9), False)
        ledger.record(lines["?"], line(lines["?"], ok=False, again=9), False)
        assert files.failed() == "bcd?c?", "while it runs nothing but whole lines is added"
        ledger.flush()
        assert left(ledger, lines) == "def", "d had no outcome this time, and keeps its error"
    assert (files.answered(), files.failed()) == ("ab", "dc?")
    assert [record["again"] for record in files.records(files.errors)] == [2, 9, 9]


def test_a_kill_before_the_errors_are_put_in_order(files, lines):
    files.write(output="a", errors="bcd?")
    with opened(files, lines, retry_errors=True) as ledger:
        ledger.record(lines["b"], line(lines["b"], ok=True), True)
        ledger.record(lines["c"], line(lines["c"], ok=False, again=9), False)
    assert files.failed() == "bcd?c"
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "ef"
    assert (files.answered(), files.failed()) == ("ab", "d?c")


def test_an_error_is_dropped_only_for_an_answer_that_is_safe(files, lines, monkeypatch):
    files.write(output="a", errors="b")
    steps = []
    fsync, replace = os.fsync, os.replace
    with opened(files, lines, retry_errors=True) as ledger:
        ledger.record(lines["b"], line(lines["b"], ok=True), True)
        monkeypatch.setattr(
            os,
            "fsync",
            lambda handle: (steps.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)),
        )
        monkeypatch.setattr(os, "replace", lambda *p: (steps.append("replace"), replace(*p)))
        ledger.flush()
        monkeypatch.undo()
    assert steps.index(files.output) < steps.index("replace")


def test_nothing_is_rewritten_without_need(files, lines):
    files.write(output="abc", errors="d")
    before = [os.stat(path).st_ino for path in (files.output, files.errors)]
    with opened(files, lines) as ledger:
        ledger.record(lines["e"], line(lines["e"], ok=True), True)
        ledger.record(lines["f"], line(lines["f"], ok=False), False)
        ledger.sort()
        ledger.flush()
    assert [os.stat(path).st_ino for path in (files.output, files.errors)] == before


def test_sorting_gives_the_order_of_the_input_and_a_journal(files, lines):
    with opened(files, lines) as ledger:
        for name in "fceab":
            ledger.record(lines[name], line(lines[name], ok=True), True)
        ledger.sort()
        assert files.answered() == "abcef"
        after = os.stat(files.output).st_ino
        ledger.sort()
        assert os.stat(files.output).st_ino == after, "what is in order is left alone"
        ledger.record(lines["d"], line(lines["d"], ok=True), True)
        assert files.answered() == "abcefd"
        ledger.sort()
    assert files.answered() == "abcdef"
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "?"
        ledger.sort()
    assert files.answered() == "abcdef"


def test_sorting_drops_nothing_that_it_does_not_know(files, lines):
    with opened(files, lines) as ledger:
        for name in "ba":
            ledger.record(lines[name], line(lines[name], ok=True), True)
        ledger._output.append(b'{"custom_id":"c"}')
        with pytest.raises(BatchError, match="something else has written to it"):
            ledger.sort()
    assert files.answered() == "bac"


def finish(files, lines, kept=None):
    """A run that has an outcome for everything: a to d are answered, the rest are refused."""
    with opened(files, lines, retry_errors=True, sync_lines=1) as ledger:
        for task in lines.tasks():
            if not ledger.is_done(task.position):
                ok = task.custom_id is not None and task.custom_id <= "d"
                ledger.record(task, line(task, ok=ok, again=9), ok)
                if kept is not None:
                    kept.append((task.custom_id or "?", ok))
        ledger.flush()
        ledger.sort()


class KilledError(OSError):
    """What every call of the system gives once the process is dead."""


CALLS = ["write", "fsync", "ftruncate", "replace", "unlink", "fchmod"]


class Death:
    """Kills at call number `at` of those that change the disk, before or after it took effect."""

    def __init__(self, monkeypatch, at, after):
        self.left, self.after, self.calls = at, after, 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self.guarded(getattr(os, name)))

    def guarded(self, true):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls > self.left:
                if self.calls == self.left + 1 and self.after:
                    true(*args, **kwargs)
                raise KilledError(errno.EIO, "killed")
            return true(*args, **kwargs)

        return call


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_between_any_two_steps_loses_nothing(tmp_path, lines, after):
    def begun(name):
        (tmp_path / name).mkdir()
        files = Files(tmp_path / name)
        files.write(output="da", errors="cebe")
        return files

    unbroken = begun("unbroken")
    finish(unbroken, lines)
    assert (unbroken.answered(), unbroken.failed()) == ("abcd", "e?f")
    steps = 0
    while True:
        files, kept = begun(f"killed-{steps}"), []
        with pytest.MonkeyPatch.context() as patch:
            death = Death(patch, steps, after)
            with contextlib.suppress(BatchError, OSError):
                finish(files, lines, kept)
        if death.calls <= steps:
            break
        with opened(files, lines) as ledger:
            for name, _ in [("d", True), ("a", True), *kept]:
                assert ledger.is_done(lines[name].position), (steps, name)
        answers = [name for name, ok in kept if ok]
        assert set(files.answered()) >= {"d", "a", *answers}, steps
        finish(files, lines)
        for path, whole in ((files.output, unbroken.output), (files.errors, unbroken.errors)):
            with open(path, "rb") as one, open(whole, "rb") as other:
                assert one.read() == other.read(), steps
        assert sorted(os.listdir(tmp_path / f"killed-{steps}")) == [
            "out.errors.jsonl",
            "out.jsonl",
        ]
        steps += 1
    assert steps > 20


Action = st.one_of(
    st.tuples(st.sampled_from("abcdef?"), st.booleans()),
    st.sampled_from(["restart", "retry", "flush", "sort", "torn"]),
)


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(Action, max_size=30))
def test_a_ledger_is_a_dictionary_that_survives(tmp_path_factory, actions):
    files, lines = Files(tmp_path_factory.mktemp("ledger")), Lines("abcdef?")
    outcomes: dict[str, bool] = {}
    retrying: set[str] = set()  # failed before the last start, and to be tried again
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        ledger = stack.enter_context(opened(files, lines))
        for action in actions:
            if isinstance(action, tuple):
                name, ok = action
                if name in outcomes and name not in retrying:
                    continue
                ok = ok and name != "?"
                ledger.record(lines[name], line(lines[name], ok=ok), ok)
                outcomes[name] = ok
                retrying.discard(name)
            elif action in ("flush", "sort"):
                getattr(ledger, action)()
                assert sorted(files.failed()) == sorted(n for n, ok in outcomes.items() if not ok)
                if action == "sort":
                    assert list(files.answered()) == sorted(n for n, ok in outcomes.items() if ok)
            else:
                stack.close()
                if action == "torn":
                    for path in (files.output, files.errors):
                        with open(path, "ab") as file:
                            file.write(b'{"custom_id":"a"')
                retry = action == "retry"
                retrying = {n for n, ok in outcomes.items() if not ok} if retry else set()
                ledger = stack.enter_context(opened(files, lines, retry_errors=retry))
            done = set(outcomes) - retrying
            assert set(left(ledger, lines)) == set("abcdef?") - done
            assert ledger._index.done == sum(outcomes.values())


def test_in_object_storage(monkeypatch, lines):
    storage = object_storage(monkeypatch)
    files = Files("gs://bucket/batch")
    with opened(files, lines, sync_lines=2) as ledger:
        for name, ok in [("c", True), ("b", False), ("a", True), ("e", False), ("d", True)]:
            ledger.record(lines[name], line(lines[name], ok=ok), ok)
    with opened(files, lines, retry_errors=True) as ledger:
        assert left(ledger, lines) == "be?f"
        ledger.record(lines["b"], line(lines["b"], ok=True), True)
        ledger.flush()
        ledger.sort()
    objects = storage.objects()
    assert [name.removeprefix("/bucket/batch/") for name in sorted(objects)] == [
        "out.errors.jsonl/part-00001.jsonl",
        *(f"out.jsonl/part-0000{number}.jsonl" for number in range(3)),
        "out.jsonl/sorted.jsonl",
    ]
    in_order = objects["/bucket/batch/out.jsonl/sorted.jsonl"].splitlines()
    assert [json.loads(found)["custom_id"] for found in in_order] == ["a", "b", "c", "d"]
    with opened(files, lines) as ledger:
        assert left(ledger, lines) == "?f"
