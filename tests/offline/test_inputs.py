"""Files by pattern, read as often as it takes, and only while they stay as they are."""

import gzip
import hashlib
import io
import os
import sys
import threading

import pytest
from etils import epath

from tpuinfer.offline import inputs
from tpuinfer.offline.inputs import Digest, find_files
from tpuinfer.offline.task import BatchError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "c.csv", "sub/d.jsonl", "sub/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def paths(*patterns):
    return [file.path for file in find_files(patterns, None)]


def text_of(file):
    with file.open() as opened:
        return opened.read()


def test_patterns_are_in_their_order_and_what_one_matches_is_sorted(folder):
    assert paths("c.csv", "*.jsonl") == ["c.csv", "a.jsonl", "b.jsonl"]
    assert paths("**/*.jsonl") == ["a.jsonl", "b.jsonl", "sub/a.jsonl", "sub/d.jsonl"]


def test_a_glob_passes_over_what_the_batch_writes(folder):
    written = ("./b.jsonl", str(folder / "sub"), "out.jsonl")
    assert [file.path for file in find_files(["**/*.jsonl"], None, written)] == ["a.jsonl"]
    with pytest.raises(BatchError, match=r"^\*/d.jsonl: matches no file$"):
        find_files(["*/d.jsonl"], None, written)


@pytest.mark.parametrize("given", ["b.jsonl", "sub/../b.jsonl", "link.jsonl", "sub/d.jsonl"])
def test_a_file_that_the_batch_writes_is_no_input(folder, given):
    (folder / "link.jsonl").symlink_to("b.jsonl")
    with pytest.raises(BatchError, match=f"^{given}: is an input, and the batch would write it"):
        find_files(["a.jsonl", given], None, ("sub", str(folder / "b.jsonl")))


def test_names_are_short_where_they_are_unambiguous(folder):
    files = find_files([str(folder / "c.csv"), "a.jsonl", "sub/*.jsonl"], None)
    assert [file.name for file in files] == [
        "c.csv",
        f"{folder.name}/a.jsonl",
        "sub/a.jsonl",
        "d.jsonl",
    ]


def test_names_are_the_same_from_any_folder(folder, monkeypatch):
    (folder / "sub/b.jsonl").write_text("other")
    (folder / "x/sub").mkdir(parents=True)
    (folder / "x/sub/a.jsonl").write_text("a third")
    here = find_files(["*.jsonl", "sub/*.jsonl", "x/**/*.jsonl"], None)
    monkeypatch.chdir(folder / "sub")
    there = find_files(["../*.jsonl", "*.jsonl", "../x/**/*.jsonl"], None)
    names = [file.name for file in here]
    assert [file.name for file in there] == names
    home = folder.name
    wanted = ["a.jsonl", "b.jsonl", "sub/a.jsonl", "sub/b.jsonl", "d.jsonl", "x/sub/a.jsonl"]
    assert names == [f"{home}/a.jsonl", f"{home}/b.jsonl", f"{home}/sub/a.jsonl", *wanted[3:]]


def test_a_file_whose_name_looks_like_a_pattern_is_meant_itself(folder):
    (folder / "[ab].jsonl").write_text("x")
    assert paths("[ab].jsonl") == ["[ab].jsonl"]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ([], "no input is given"),
        (["no.jsonl"], "no.jsonl: is not there"),
        (["*.tsv"], "*.tsv: matches no file"),
        (["sub"], "sub: is a folder; name its files: sub/*.jsonl"),
        (["a.jsonl", "./a.jsonl"], "./a.jsonl is named twice"),
        (["a.jsonl", "*.jsonl"], "a.jsonl is named twice"),
        (["-", "-"], "- is named twice"),
        (["x.txt"], "x.txt: its kind is not known; the name must end with .jsonl, "),
        (["x"], "x: its kind is not known"),
        (["x.parquet.gz"], "x.parquet.gz: its kind is not known"),
        (["gone.jsonl"], "gone.jsonl: cannot be read (No such file or directory)"),
        (
            ["nosuch://bucket/a.jsonl"],
            "nosuch://bucket/a.jsonl: object storage cannot be reached (unknown scheme)",
        ),
    ],
)
def test_what_is_no_input_is_refused(folder, patterns, words):
    for name in ("x.txt", "x", "x.parquet.gz"):
        (folder / name).write_text("x")
    (folder / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(BatchError) as error:
        find_files(patterns, None)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_digest_is_of_the_bytes_as_they_lie_there(folder):
    packed = gzip.compress(b"hello\n" * 1000)
    (folder / "x.JSONL.gz").write_bytes(packed)
    [file] = find_files(["x.JSONL.gz"], None)
    wanted = Digest("x.JSONL.gz", len(packed), hashlib.sha256(packed).hexdigest())
    assert file.digest() == wanted
    assert file.suffix == ".jsonl"
    assert text_of(file) == b"hello\n" * 1000
    (folder / "x.JSONL.gz").write_bytes(b"other")
    assert file.digest() == wanted, "it is known"


@pytest.mark.parametrize("change", [b"b.jsonk", b"longer", None])
def test_a_file_that_changes_is_refused(folder, change):
    [file] = find_files(["b.jsonl"], None)
    rows = file.guarded(iter([(1, "x")]))
    assert next(rows) == (1, "x")
    if change is None:
        os.replace("a.jsonl", "b.jsonl")
    else:
        (folder / "b.jsonl").write_bytes(change)
        os.utime("b.jsonl", ns=(1, 1))
    for read in (lambda: next(rows), file.open, file.digest):
        with pytest.raises(BatchError, match=r"b.jsonl: has changed while it was read"):
            read()


def test_a_file_that_is_gone_is_refused(folder):
    [file] = find_files(["b.jsonl"], None)
    os.remove("b.jsonl")
    with pytest.raises(BatchError, match=r"b.jsonl: cannot be read \(No such file"):
        file.open()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-30], "ended before"),
        (lambda data: b"no gzip", "Not a gzipped file"),
        (lambda data: data[:200] + bytes(200) + data[400:], ""),
    ],
)
def test_a_damaged_packed_file_is_one_line(folder, damage, words):
    data = gzip.compress(b"".join(b"%d\n" % n for n in range(100_000)))
    (folder / "x.jsonl.gz").write_bytes(damage(data))
    [file] = find_files(["x.jsonl.gz"], None)

    def rows():
        with file.open() as opened:
            yield from enumerate(opened, 1)

    with pytest.raises(BatchError, match=r"x.jsonl.gz: cannot be read after line \d+") as error:
        list(file.guarded(rows()))
    assert words in str(error.value)


def test_stdin_is_copied_and_read_more_than_once(folder, monkeypatch):
    data = bytes(range(256)) * 10_000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    [file] = find_files(["-"], folder / "sub")
    assert (file.name, file.suffix) == ("stdin", ".jsonl")
    assert sorted(os.listdir(folder / "sub")) == ["a.jsonl", "d.jsonl"], "the copy has no name"
    with file.open() as first, file.open() as second:
        assert first.read(1000) == data[:1000]
        assert second.read() == data
        assert first.read() == data[1000:]
        assert first.seek(-5, os.SEEK_END) == len(data) - 5
        assert first.seek(2, os.SEEK_CUR) == len(data) - 3
        assert first.read() == data[-3:]
    assert file.digest() == Digest("stdin", len(data), hashlib.sha256(data).hexdigest())


def test_a_copy_that_cannot_be_made_is_one_line(folder, monkeypatch):
    with pytest.raises(BatchError, match=r"-: no temporary copy can be made \(No such file"):
        find_files(["-"], folder / "nowhere")

    class Full(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Full())))
    with pytest.raises(BatchError, match=r"-: cannot be copied \(No space left on device\)"):
        find_files(["-"], folder)


def test_a_pipe_is_copied(folder):
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: (folder / "pipe").write_text("hello"))
    writer.start()
    [file] = find_files(["pipe"], None)
    writer.join()
    assert text_of(file) == text_of(file) == b"hello"


def test_the_output_of_a_command_is_copied(folder):
    """A pipe without a name, as <(command) gives it."""
    reading, writing = os.pipe()
    os.write(writing, b"hello")
    os.close(writing)
    [file] = find_files([f"/dev/fd/{reading}"], None)
    os.close(reading)
    assert text_of(file) == text_of(file) == b"hello"
    assert (file.suffix, file.digest().bytes) == (".jsonl", 5)


def test_object_storage_is_copied_and_matched(folder, monkeypatch):
    monkeypatch.setattr(
        inputs, "place", lambda url: epath.Path(str(url).replace("gs://bucket", str(folder)))
    )
    files = find_files(["gs://bucket/b.jsonl", "gs://bucket/s*/d.jsonl"], None)
    assert [file.name for file in files] == ["b.jsonl", "d.jsonl"]
    assert [text_of(file) for file in files] == [b"b.jsonl", b"sub/d.jsonl"]
    with pytest.raises(BatchError, match=r"gs://bucket/x\*: matches no file"):
        find_files(["gs://bucket/x*"], None)
    with pytest.raises(BatchError, match=r"gs://bucket/\*\*: cannot be listed \(Recursive"):
        find_files(["gs://bucket/**"], None)
    with pytest.raises(BatchError, match=r"gs://bucket/x.jsonl: is not there"):
        find_files(["gs://bucket/x.jsonl"], None)
