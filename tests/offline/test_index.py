"""The index against a dict, and what it refuses."""

import errno
import os
import sqlite3
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpuinfer.offline import index as index_module
from tpuinfer.offline.index import DuplicateError, Index
from tpuinfer.offline.task import BatchError, Task


class Lines:
    """Tasks with these ids, one a line."""

    def __init__(self, ids):
        self.ids = ids
        self.passes = 0

    def tasks(self):
        self.passes += 1
        for position, custom_id in enumerate(self.ids):
            yield Task(position, f"in.jsonl:{position + 1}", custom_id)


@pytest.fixture
def build():
    built = []

    def built_of(ids):
        built.append(Index.build(Lines(ids)))
        return built[-1]

    yield built_of
    for index in built:
        index.close()


IDS = st.lists(st.one_of(st.none(), st.text(min_size=1, max_size=5)), max_size=40)


@given(IDS.filter(lambda ids: len(named := [i for i in ids if i is not None]) == len(set(named))))
@settings(max_examples=60, deadline=None)
def test_it_finds_what_a_dict_finds(ids):
    index = Index.build(Lines(ids))
    try:
        assert len(index) == len(ids)
        wanted = {custom_id: at for at, custom_id in enumerate(ids) if custom_id is not None}
        for probe in [*wanted, "not there", "in.jsonl:1", ""]:
            assert index.position_of(probe) == wanted.get(probe)
        for at, custom_id in enumerate(ids):
            place = f"in.jsonl:{at + 1}"
            assert index.position_at(place) == (at if custom_id is None else None)
    finally:
        index.close()


MARKS = st.lists(st.tuples(st.sampled_from(["answer", "fail"]), st.integers(0, 19)), max_size=60)


@given(MARKS)
@settings(max_examples=60, deadline=None)
def test_marks_are_kept_as_a_dict_keeps_them(marks):
    index = Index.build(Lines([f"id{at}" for at in range(20)]))
    answered, failed = {}, set()
    try:
        for number, (what, position) in enumerate(marks):
            if what == "fail":
                index.mark_failed(position)
                failed |= {position} - answered.keys()
            elif position in answered:
                with pytest.raises(ValueError, match="is answered already"):
                    index.mark(position, offset=0, length=0)
            else:
                answered[position] = (2**40 * number, number)
                failed.discard(position)
                index.mark(position, offset=2**40 * number, length=number)
        assert (index.done, index.failed) == (len(answered), len(failed))
        for position in range(20):
            assert index.is_answered(position) == (position in answered)
            assert index.is_failed(position) == (position in failed)
            assert index.is_done(position) == (position in answered or position in failed)
        assert list(index.in_order()) == [(at, *answered[at]) for at in sorted(answered)]
    finally:
        index.close()


def test_places_are_read_in_more_than_one_piece(build, monkeypatch):
    monkeypatch.setattr(index_module, "_PLACES_READ", 7)
    index = build([f"id{at}" for at in range(40)])
    wanted = [0, 6, 7, 8, 13, 30]
    for position in reversed(wanted):
        index.mark(position, offset=position, length=1)
    assert list(index.in_order()) == [(at, at, 1) for at in wanted]


def test_answers_can_move_while_they_are_read_in_order(build):
    index = build(["a", "b", "c"])
    for position in (2, 0):
        index.mark(position, offset=position, length=5)
    for end, (position, _, length) in enumerate(index.in_order()):
        index.move(position, offset=100 + end, length=length)
    assert list(index.in_order()) == [(0, 100, 5), (2, 101, 5)]
    assert index.done == 2


def test_an_id_and_a_place_of_the_same_words_are_two(build):
    index = build([None, "in.jsonl:1"])
    assert (index.position_at("in.jsonl:1"), index.position_of("in.jsonl:1")) == (0, 1)


def test_an_empty_input_has_an_index(build):
    index = build([])
    assert (len(index), index.done, index.failed, list(index.in_order())) == (0, 0, 0, [])
    assert index.position_of("a") is None


def test_a_duplicate_is_refused_with_both_places():
    lines = Lines(["a", "b", "a"])
    with pytest.raises(DuplicateError) as error:
        Index.build(lines)
    assert str(error.value) == (
        "custom_id is not unique: 'a' in in.jsonl:1 and in.jsonl:3; each line needs one of its own"
    )
    assert (error.value.code, error.value.where, error.value.line) == (
        "duplicate_custom_id",
        "in.jsonl:3",
        3,
    )


def test_the_first_few_duplicates_are_named_and_the_others_counted():
    with pytest.raises(DuplicateError) as error:
        Index.build(Lines(["x", *"abcdef", *"fedcba", "a"]))
    message = str(error.value)
    for words in ("'f' in in.jsonl:7 and in.jsonl:8", "'d' in in.jsonl:5 and in.jsonl:10"):
        assert words in message
    assert "'c'" not in message
    assert "and 4 more" in message


def test_lines_without_an_id_are_no_duplicates(build):
    assert len(build([None, None, "a"])) == 3


def test_it_reads_the_lines_once():
    lines = Lines(["a", "b"])
    Index.build(lines).close()
    assert lines.passes == 1


def test_what_goes_wrong_in_reading_comes_out_as_it_is():
    class Torn(Lines):
        def tasks(self):
            yield from super().tasks()
            raise BatchError("in.jsonl: has changed")

    with pytest.raises(BatchError, match="has changed"):
        Index.build(Torn(["a"]))


def test_no_room_for_the_ids_is_one_line(monkeypatch):
    def full(database, tasks):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(index_module, "_fill", full)
    with pytest.raises(BatchError, match=r"database or disk is full.*TMPDIR"):
        Index.build(Lines(["a"]))


def test_no_room_for_places_is_one_line_and_the_line_is_not_answered(build, monkeypatch):
    index = build(["a"])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BatchError, match="No space left on device"):
            index.mark(0, offset=0, length=1)
    assert not index.is_done(0)
    index.mark(0, offset=0, length=1)
    assert index.done == 1


def test_its_files_have_no_name_that_a_kill_could_leave(build, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    build(["a"]).mark(0, offset=0, length=1)
    assert os.listdir(tmp_path) == []


def test_closing_gives_the_files_back(build):
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    index = build(["a"])
    index.close()
    index.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
