import errno
import json
import os
from dataclasses import dataclass, replace

import pytest
from object_storage import object_storage

from tpuinfer.offline.manifest import Manifest, MixUpError, check
from tpuinfer.offline.task import BatchError


@dataclass(frozen=True)
class File:
    name: str = "data/in.jsonl"
    bytes: int = 1000
    sha256: str = "ab" * 32


WANTED = Manifest.make(
    created=1700000000,
    inputs=[File()],
    lines=200,
    model={"name": "tiny", "fingerprint": "12" * 32},
    settings={"seed": 0, "form": {"defaults": {"temperature": 0.7}, "system": None}},
    versions={"tpuinfer": "0.1.0"},
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl.manifest.json"


@pytest.fixture
def output(tmp_path):
    """An output that has a line."""
    output = tmp_path / "out.jsonl"
    output.write_text('{"custom_id":"a"}\n')
    return str(output)


def changed(**fields):
    return replace(WANTED, created=WANTED.created + 5, **fields)


def test_a_new_one_is_written_and_read_again(path):
    assert check(path, WANTED) == WANTED
    assert json.loads(path.read_bytes())["version"] == 1
    later = replace(WANTED, created=WANTED.created + 99)
    assert check(path, later) == WANTED, "what is in force is what the batch was begun with"


def test_files_are_known_by_what_is_in_them_and_their_last_name(path):
    check(path, WANTED)
    moved = Manifest.make(
        created=1,
        inputs=[File(name="/elsewhere/in.jsonl")],
        lines=200,
        model=WANTED.model,
        settings=WANTED.settings,
        versions=WANTED.versions,
    )
    assert check(path, moved) == WANTED


def test_a_file_of_another_name_is_the_same_where_its_bytes_are(path, output):
    check(path, WANTED)
    renamed = changed(inputs=[{**WANTED.inputs[0], "name": "moved.jsonl"}])
    for by_place in (False, True):
        assert check(path, renamed, journals=[output], by_place=by_place) == WANTED


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"inputs": [{"name": "in.jsonl", "bytes": 1001, "sha256": "cd" * 32}], "lines": 201},
            "input in.jsonl: sha256 was abababababab.. (1,000 bytes), is cdcdcdcdcdcd.. "
            "(1,001 bytes); lines: 200 before, 201 now",
        ),
        ({"inputs": []}, "inputs: 1 files before, 0 now"),
        (
            {"inputs": [{"name": "b.jsonl", "bytes": 1000, "sha256": "cd" * 32}]},
            "input b.jsonl: stands where in.jsonl stood; input b.jsonl: sha256 was abababababab.. ",
        ),
        (
            {"model": {"name": "tiny", "fingerprint": "34" * 32}},
            "model fingerprint: was 121212121212.., is 343434343434..;",
        ),
        ({"model": {**WANTED.model, "dtype": "bfloat16"}}, "model dtype: was absent, is bfloat16;"),
        (
            {"settings": {"seed": 1, "form": {"defaults": {}, "system": "x" * 100}}},
            "setting form.defaults: was absent, is {}; "
            "setting form.defaults.temperature: was 0.7, is absent; "
            f"setting form.system: was absent, is {'x' * 80}.. (100 letters); "
            "setting seed: was 0, is 1;",
        ),
        ({"versions": {"tpuinfer": "0.2.0"}}, "version of tpuinfer: was 0.1.0, is 0.2.0;"),
    ],
)
def test_every_difference_is_named_and_nothing_is_touched(path, output, fields, named):
    check(path, WANTED)
    before = path.read_bytes()
    with pytest.raises(BatchError) as refusal:
        check(path, changed(**fields), journals=[output])
    assert named in str(refusal.value)
    assert "--accept-changes" in str(refusal.value)
    assert "another --output" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before


def test_without_journals_nothing_is_known_to_be_empty(path):
    check(path, WANTED)
    with pytest.raises(BatchError, match="lines: 200 before, 7 now"):
        check(path, changed(lines=7))


def test_accepted_changes_are_kept_and_told(path, output):
    check(path, WANTED)
    first = changed(versions={"tpuinfer": "0.2.0"})
    taken = check(path, first, journals=[output], accept=True)
    told = ("version of tpuinfer: was 0.1.0, is 0.2.0",)
    assert taken == replace(first, created=WANTED.created, accepted=told)
    assert check(path, first, journals=[output]) == taken, "accepted once is accepted"
    second = changed(versions={"tpuinfer": "0.3.0"}, lines=7)
    again = check(path, second, journals=[output], accept=True)
    assert again.created == WANTED.created
    assert [line.partition(":")[0] for line in again.accepted] == [
        "version of tpuinfer",
        "lines",
        "version of tpuinfer",
    ]


def test_rows_known_by_their_places_take_no_other_input(path, output):
    check(path, WANTED)
    edited = changed(inputs=[{**WANTED.inputs[0], "sha256": "f" * 64}, *WANTED.inputs[1:]])
    for accept in (False, True):
        with pytest.raises(MixUpError, match=r"sha256 was .*give another --output, and --id-field"):
            check(path, edited, journals=[output], accept=accept, by_place=True)
    other = changed(settings={"seed": 1})
    check(path, other, journals=[output], accept=True, by_place=True)
    check(path, edited, journals=[output], accept=True)


def test_an_output_that_has_no_line_yet_takes_another_manifest(path, output):
    check(path, WANTED)
    with open(output, "wb"):
        pass
    other = changed(lines=7)
    assert check(path, other, journals=[output, output + ".absent"]) == other


def test_an_output_without_a_manifest_is_no_output_of_ours(path, output):
    for accept in (False, True):
        with pytest.raises(BatchError, match=r"out\.jsonl: is there, and .* is not"):
            check(path, WANTED, journals=[output], accept=accept)
    assert not path.exists()


DAMAGED = {"version": 1, **vars(WANTED), "inputs": [{"name": "in.jsonl"}]}


@pytest.mark.parametrize(
    "found", ["", "[]", "{}", "{", '{"version": 1}', '{"version": 1, "x": 2}', json.dumps(DAMAGED)]
)
def test_a_file_that_is_no_manifest_is_refused_and_kept(path, found):
    path.write_text(found)
    with pytest.raises(BatchError, match="is no manifest of a batch"):
        check(path, WANTED, accept=True)
    assert path.read_text() == found


def test_a_manifest_of_later_times_is_refused(path):
    path.write_text('{"version": 2, "anything": []}')
    with pytest.raises(BatchError, match="a manifest of version 2; this tpuinfer reads version 1"):
        check(path, WANTED)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_while_it_is_written_leaves_the_old_one(path, output, monkeypatch, name):
    check(path, WANTED)

    def killed(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, killed)
    with pytest.raises(BatchError, match=r"cannot be written \(No space left on device\)"):
        check(path, changed(lines=7), journals=[output], accept=True)
    monkeypatch.undo()
    assert check(path, WANTED) == WANTED
    assert sorted(os.listdir(path.parent)) == ["out.jsonl", path.name]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BatchError, match=r"absent/m\.json: cannot be written \(No such file"):
        check(tmp_path / "absent" / "m.json", WANTED)


def test_it_may_stand_in_object_storage(monkeypatch):
    storage = object_storage(monkeypatch)
    url = "gs://bucket/out.jsonl.manifest.json"
    assert check(url, WANTED) == WANTED
    storage.pipe("/bucket/out.jsonl/part-00000.jsonl", b"{}\n")
    with pytest.raises(BatchError, match="lines: 200 before, 7 now"):
        check(url, changed(lines=7), journals=["gs://bucket/out.jsonl"])
