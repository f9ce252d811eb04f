"""A batch from its files to its files, on an answerer by hand."""

import asyncio
import json

import pytest
from answering import ByHand

from tpuinfer.offline.batch import Batch, Care, Job
from tpuinfer.offline.run import Pace
from tpuinfer.offline.source import Form
from tpuinfer.offline.task import BatchError, Outcome


def model():
    return {"name": "m", "fingerprint": "f"}


def write_lines(path, count):
    lines = [
        {
            "custom_id": f"id-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"p{number:03}"},
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def job(tmp_path):
    given = write_lines(tmp_path / "in.jsonl", 20)
    return Job([str(given)], str(tmp_path / "out.jsonl"), seed=3, created=1000)


def ran(batch, answerer, **pace):
    async def main():
        return await batch.run(answerer, stop=asyncio.Event(), pace=Pace(backoff=(), **pace))

    return asyncio.run(main())


def opened(job, care=None, identify=model):
    return Batch.open(job, identify, care)


def ids(path):
    return [json.loads(line)["custom_id"] for line in path.read_text("utf-8").splitlines()]


def test_files_are_named_after_the_output(tmp_path):
    job = Job(["in.jsonl"], "a/out.jsonl")
    assert job.errors_path == "a/out.errors.jsonl"
    assert (job.manifest_path, job.lock_path) == ("a/out.jsonl.manifest.json", "a/out.jsonl.lock")
    assert Job(["x"], "out").errors_path == "out.errors.jsonl"
    assert Job(["x"], "out", errors="e").errors_path == "e"


def test_a_batch_counts_from_its_files(job, tmp_path):
    answerer = ByHand()
    answerer.status = {"p004": [503], "p005": [400]}
    batch = opened(job)
    assert (len(batch), batch.answered, batch.failed, batch.left) == (20, 0, 0, 20)
    summary = ran(batch, answerer)
    assert (summary.lines, summary.answered, summary.failed, summary.left) == (20, 18, 1, 1)
    assert (summary.tally.passed, summary.tally.completion_tokens) == (1, 54)
    assert not batch.finished
    batch.finish(sort=True)
    batch.close()
    batch.close()
    again = opened(job)
    assert (again.answered, again.failed, again.left) == (18, 1, 1)
    summary = ran(again, ByHand())
    assert (summary.answered, summary.tally.answered) == (19, 1)
    assert again.finished
    again.finish(sort=True)
    again.close()
    assert ids(tmp_path / "out.jsonl") == [f"id-{i}" for i in range(20) if i != 5]
    assert ids(tmp_path / "out.errors.jsonl") == ["id-5"]


def test_a_resumed_batch_is_the_unbroken_one(job, tmp_path):
    """Whatever the clock says: the first `created` holds."""
    with_all = Job(job.inputs, str(tmp_path / "all.jsonl"), seed=3, created=1000)
    whole = opened(with_all)
    ran(whole, ByHand())
    whole.finish(sort=True)
    whole.close()
    first = ByHand()
    first.status = {f"p{number:03}": [503] for number in range(0, 20, 2)}
    for answerer, created in ((first, 1000), (ByHand(width=1), 2000)):
        batch = opened(Job(job.inputs, job.output, seed=3, created=created))
        ran(batch, answerer)
        batch.finish(sort=True)
        batch.close()
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()
    first_line = json.loads((tmp_path / "out.jsonl").read_text("utf-8").splitlines()[0])
    assert first_line["response"]["body"]["created"] == 1000


def test_one_batch_runs_twice_with_two_answerers(job, tmp_path):
    """As the server does with what is left when a batch expires."""

    class Expired(ByHand):
        async def answer(self, url, body, stamp):
            error = {"code": "batch_expired", "message": "late"}
            return Outcome(0, json.dumps({"error": error}).encode())

    answerer = ByHand()
    answerer.status = {f"p{number:03}": [503] for number in range(15, 20)}
    batch = opened(job)
    assert ran(batch, answerer).left == 5
    assert ran(batch, Expired()).left == 0
    assert (batch.answered, batch.failed) == (15, 5)
    batch.close()
    lines = (tmp_path / "out.errors.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["error"]["code"] for line in lines} == {"batch_expired"}


def test_errors_are_retried_when_asked(job, tmp_path):
    answerer = ByHand()
    answerer.status = {"p005": [400], "p006": [400]}
    batch = opened(job)
    ran(batch, answerer)
    batch.close()
    assert opened_and_closed(job) == (18, 2)
    again = ByHand()
    again.status = {"p006": [400]}
    batch = opened(job, Care(retry_errors=True))
    assert (batch.failed, batch.left) == (0, 2)
    ran(batch, again)
    batch.finish()
    batch.close()
    assert set(again.asked) == {"p005", "p006"}
    assert opened_and_closed(job) == (19, 1)
    assert ids(tmp_path / "out.errors.jsonl") == ["id-6"]


def test_the_error_of_a_line_without_an_id_goes_once_it_is_mended(job, tmp_path):
    given = tmp_path / "in.jsonl"
    good = given.read_text("utf-8")
    given.write_text(good.replace('"custom_id": "id-5", ', ""), "utf-8")
    batch = opened(job)
    ran(batch, ByHand())
    batch.close()
    assert opened_and_closed(job) == (19, 1)
    given.write_text(good, "utf-8")
    with pytest.raises(BatchError, match="--accept-changes"):
        opened(job)
    batch = opened(job, Care(accept_changes=True))
    ran(batch, ByHand())
    batch.close()
    assert opened_and_closed(job) == (20, 0)
    assert (tmp_path / "out.errors.jsonl").read_bytes() == b""


def test_a_batch_goes_on_from_another_folder_and_under_another_name(job, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/in.jsonl").write_text("no json\n")
    monkeypatch.chdir(tmp_path)
    first = Job(["in.jsonl", "sub/in.jsonl"], job.output, seed=3)
    batch = opened(first)
    ran(batch, ByHand())
    batch.close()
    monkeypatch.chdir(tmp_path / "sub")
    assert opened_and_closed(Job(["../in.jsonl", "in.jsonl"], job.output, seed=3)) == (20, 1)
    (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    moved = Job(["../moved.jsonl", str(tmp_path / "sub/in.jsonl")], job.output, seed=3)
    with pytest.raises(
        BatchError, match=r"'sub/in\.jsonl:1' is not in the input.*--accept-changes"
    ):
        opened(moved)
    assert opened_and_closed_with(moved, Care(accept_changes=True)) == (20, 0)


def test_an_input_without_bad_lines_may_be_renamed(job, tmp_path):
    batch = opened(job)
    ran(batch, ByHand())
    batch.close()
    (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    assert opened_and_closed(Job([str(tmp_path / "moved.jsonl")], job.output, seed=3)) == (20, 0)


def opened_and_closed_with(job, care):
    batch = opened(job, care)
    batch.close()
    return batch.answered, batch.failed


def opened_and_closed(job):
    batch = opened(job)
    batch.close()
    return batch.answered, batch.failed


@pytest.mark.parametrize("role", ["output", "errors", "manifest", "also"])
def test_no_input_is_written(tmp_path, role):
    name = {"manifest": "out.jsonl.manifest.json"}.get(role, f"{role}.jsonl")
    given = write_lines(tmp_path / name, 2)
    before = given.read_bytes()
    paths = {"output": tmp_path / "out.jsonl", "errors": tmp_path / "e.jsonl", role: given}
    made = Job([str(given)], str(paths["output"]), errors=str(paths["errors"]),
               also=[str(paths["also"])] if "also" in paths else [])  # fmt: skip
    with pytest.raises(BatchError, match="is an input, and the batch would write it"):
        opened_and_closed(made)
    assert given.read_bytes() == before


def test_the_model_is_named_only_once_the_input_is_good(tmp_path):
    def identify():
        raise AssertionError("it was asked")

    missing = Job([str(tmp_path / "none.jsonl")], str(tmp_path / "out.jsonl"))
    with pytest.raises(BatchError, match=r"none\.jsonl"):
        opened(missing, identify=identify)
    twice = tmp_path / "twice.jsonl"
    line = write_lines(tmp_path / "one.jsonl", 1).read_text("utf-8")
    twice.write_text(line + line, "utf-8")
    with pytest.raises(BatchError, match=r"'id-0' in twice\.jsonl:1 and twice\.jsonl:2"):
        opened(Job([str(twice)], str(tmp_path / "out.jsonl")), identify=identify)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n", "utf-8")
    with pytest.raises(BatchError, match=r"empty\.jsonl: there is no line in it"):
        opened(Job([str(empty)], str(tmp_path / "out.jsonl")), identify=identify)


def test_two_batches_do_not_write_one_output(job):
    batch = opened(job)
    with pytest.raises(BatchError, match="held by process"):
        opened(job)
    batch.close()
    opened(job).close()


def test_what_refuses_to_open_gives_the_lock_back(job):
    with pytest.raises(BatchError, match="no model"):
        opened(job, identify=fails)
    opened(job).close()


def fails():
    raise BatchError("no model")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 4}, "setting seed: was 3, is 4"),
        ({"form": Form(defaults={"top_k": 2})}, "setting defaults.top_k: was absent, is 2"),
    ],
)
def test_other_settings_are_a_mix_up(job, changed, named):
    batch = opened(job)
    ran(batch, ByHand())
    batch.close()
    other = Job(**{**vars(job), **changed})
    with pytest.raises(BatchError, match=named):
        opened(other)
    opened(other, Care(accept_changes=True)).close()


def test_a_lock_that_is_lost_ends_the_run(job, monkeypatch):
    batch = opened(job)
    checks = []

    def check():
        checks.append(1)
        if len(checks) >= 5:
            raise BatchError("the lock was lost")

    monkeypatch.setattr(batch._lock, "check", check)
    with pytest.raises(BatchError, match="the lock was lost"):
        ran(batch, ByHand())
    batch.close()
    assert 5 <= len(checks) <= 5 + 3  # what was in flight


def test_printed_lines_are_whole_and_counted(job):
    class Stream:
        written = b""

        def write(self, data):
            self.written += data

        def flush(self):
            pass

    stream = Stream()
    answerer = ByHand()
    answerer.status = {"p005": [400]}
    batch = Batch.printing(job, stream)
    summary = ran(batch, answerer)
    assert (summary.answered, summary.failed, summary.left) == (19, 1, 0)
    lines = [json.loads(line) for line in stream.written.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"id-{i}" for i in range(20))
    with pytest.raises(BatchError, match="give --output a file"):
        batch.finish(sort=True)
    batch.close()
