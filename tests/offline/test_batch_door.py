"""`python -m tpuinfer.batch` from the outside, on the fake engine: killed, resumed, refused."""

import contextlib
import json
import os
import pty
import random
import select
import signal
import time
from pathlib import Path
from typing import Any

import fake_batch
import pytest

LINES = 12_000
KILLS = 40


def request(number: int, source: random.Random) -> dict[str, Any]:
    prompt = "".join(source.choices("abcdefgh", k=source.randint(1, 20)))
    body: dict[str, Any] = {"model": "fake", "max_tokens": source.randint(1, 24), "temperature": 1}
    if number % 3:
        url, said = "/v1/completions", {"prompt": prompt}
    else:
        url, said = "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": body | said}


def write_input(path: Path, lines: int) -> Path:
    source = random.Random(1)
    texts = (json.dumps(request(number, source)) + "\n" for number in range(lines))
    path.write_text("".join(texts), "utf-8")
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.jsonl", 200)


def flags(given: Path, output: Path, *more: str) -> tuple[str, ...]:
    return (*more, "--model", "fake", "--input", str(given), "--output", str(output))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def same_created(done: Path, output: Path) -> None:
    """Begin a batch as of the moment when another one was begun."""
    manifest = Path(f"{done}.manifest.json").read_text("utf-8")
    Path(f"{output}.manifest.json").write_text(manifest, "utf-8")


def test_forty_kills_lose_nothing(tmp_path):
    given = write_input(tmp_path / "in.jsonl", LINES)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert fake_batch.run(*flags(given, whole), "--sort").code == 0
    same_created(whole, killed)
    killed.touch()
    source, kills = random.Random(2), 0
    step = whole.stat().st_size // (KILLS + 4)
    while kills < KILLS:
        moment = killed.stat().st_size + source.randint(1, step)
        with fake_batch.started(*flags(given, killed)) as running:
            while killed.stat().st_size < moment:
                time.sleep(0.002)
            running.send(signal.SIGKILL)
            assert running.result().code == -signal.SIGKILL, "it ended before it was killed"
            kills += 1
    assert len(read_whole_lines(killed)) < LINES
    last = fake_batch.run(*flags(given, killed), "--sort")
    assert last.code == 0, last.err
    assert killed.read_bytes() == whole.read_bytes()
    ids = [line["custom_id"] for line in read(killed)]
    assert ids == [f"id-{number}" for number in range(LINES)]


def read_whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def test_sigterm_exits_75_and_the_rest_is_done_later(given, tmp_path):
    output = tmp_path / "out.jsonl"
    with fake_batch.started("--fake-wait", "0.02", *flags(given, output)) as running:
        running.line_with("200 lines")
        while not (output.exists() and output.stat().st_size):
            time.sleep(0.005)
        running.send(signal.SIGTERM)
        ended = running.result()
    done = len(read(output))
    assert ended.code == 75
    assert 0 < done < 200
    assert f"tpuinfer: {200 - done} of 200 lines are left; run the same command" in ended.err
    assert fake_batch.run(*flags(given, output)).code == 0
    assert {line["custom_id"] for line in read(output)} == {f"id-{i}" for i in range(200)}
    assert len(read(output)) == 200


def test_the_grace_time_ends_and_a_second_signal_does_not_wait(given, tmp_path):
    output = tmp_path / "out.jsonl"
    slow = ("--fake-wait", "0.6", *flags(given, output))
    with fake_batch.started(*slow, "--grace-seconds", "0.1") as running:
        running.line_with("200 lines")
        time.sleep(0.3)
        start = time.monotonic()
        running.send(signal.SIGINT)
        ended = running.result()
    assert ended.code == 130
    assert time.monotonic() - start < 5
    with fake_batch.started(*slow) as running:
        running.line_with("200 lines")
        time.sleep(0.3)
        running.send(signal.SIGTERM)
        time.sleep(0.1)
        running.send(signal.SIGTERM)
        ended = running.result()
    assert ended.code == 75
    assert ended.err.endswith("tpuinfer: stopped; run the same command again to go on\n")


HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"


def test_a_second_signal_leaves_the_terminal_with_a_cursor(given, tmp_path):
    ours, theirs = pty.openpty()
    slow = ("--fake-wait", "0.6", *flags(given, tmp_path / "out.jsonl"))
    seen = b""
    with fake_batch.started(*slow, terminal=os.ttyname(theirs)) as running:
        end = time.monotonic() + 60
        while b"tok/s" not in seen and time.monotonic() < end:
            seen += read_terminal(ours)
        for _ in range(2):
            running.send(signal.SIGINT)
            time.sleep(0.1)
        assert running.result().code == 130
    while more := read_terminal(ours):
        seen += more
    os.close(theirs)
    os.close(ours)
    assert seen.rfind(SHOWN) > seen.rfind(HIDDEN) >= 0
    assert b"tpuinfer: stopped;" in seen


def read_terminal(ours: int) -> bytes:
    ready, _, _ = select.select([ours], [], [], 0.1)
    with contextlib.suppress(OSError):
        return os.read(ours, 2**16) if ready else b""
    return b""


def test_a_finished_batch_loads_nothing(given, tmp_path):
    output = tmp_path / "out.jsonl"
    assert fake_batch.run(*flags(given, output)).code == 0
    before = output.read_bytes()
    again = fake_batch.run("--fake-fail", "it was loaded", *flags(given, output))
    assert again.code == 0, again.err
    assert again.err == "200 lines: 200 answered\n"
    assert output.read_bytes() == before


def refused(*given: str) -> str:
    """What a command says that is refused before anything is loaded."""
    ended = fake_batch.run("--fake-fail", "it was loaded", *given)
    assert ended.code == 9, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    return ended.err


def test_two_writers_an_edited_input_another_model_another_setting(given, tmp_path):
    output = tmp_path / "out.jsonl"
    with fake_batch.started("--fake-wait", "0.2", *flags(given, output)) as running:
        running.line_with("200 lines")
        assert "out.jsonl.lock: held by process" in refused(*flags(given, output))
    assert fake_batch.run(*flags(given, output)).code == 0
    before = output.read_bytes()
    assert "fingerprint: was fake, is new" in refused("--fake-model", "new", *flags(given, output))
    assert "setting seed: was 0, is 1" in refused(*flags(given, output), "--seed", "1")
    lines = given.read_text("utf-8").splitlines(keepends=True)
    given.write_text("".join([*lines[:-1], lines[-1].replace("id-199", "id-new")]), "utf-8")
    said = refused(*flags(given, output))
    assert "input in.jsonl: sha256 was" in said
    assert "--accept-changes" in said
    assert output.read_bytes() == before
    assert fake_batch.run(*flags(given, output), "--accept-changes").code == 0
    assert output.read_bytes().startswith(before)
    assert read(output)[-1]["custom_id"] == "id-new"


BAD = (
    '{"custom_id": "torn", "method": "POST"',
    '["no object"]',
    '{"custom_id": "get", "method": "GET", "url": "/v1/completions", "body": {}}',
    '{"custom_id": "url", "method": "POST", "url": "/v1/images", "body": {}}',
    '{"custom_id": "body", "method": "POST", "url": "/v1/completions", "body": 7}',
    '{"custom_id": "empty", "method": "POST", "url": "/v1/completions", "body": {}}',
    '{"method": "POST", "url": "/v1/completions", "body": {}}',
)


def completion(custom_id: str, **body: Any) -> str:
    body = {"model": "fake", "prompt": "abc", "max_tokens": 3, "temperature": 0} | body
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    )


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Good lines among bad ones of every kind."""
    worse = [
        completion("model", model="gpt-4o"),
        completion("stream", stream=True),
        completion("unknown", flavour="mint"),
        completion("long", prompt="x" * 500),
    ]
    path = tmp_path / "mixed.jsonl"
    lines = [completion("first"), *BAD, "", *worse, completion("last")]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_bad_lines_get_the_servers_errors_and_stop_nothing(mixed, tmp_path):
    output = tmp_path / "out.jsonl"
    ended = fake_batch.run(*flags(mixed, output))
    assert ended.code == 0, ended.err
    errors = tmp_path / "out.errors.jsonl"
    assert f"13 lines: 2 answered, 11 failed (see {errors})" in ended.err
    answers = {line["custom_id"]: line["response"]["body"] for line in read(output)}
    assert {name: body["choices"][0]["text"] for name, body in answers.items()} == {
        "first": "def",
        "last": "def",
    }
    failed = read(errors)
    assert sorted(line["line"] for line in failed) == sorted(
        f"mixed.jsonl:{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13)
    )
    by_id = {line["custom_id"]: line["response"] for line in failed}
    assert "1 ask for a model of another name: give that with --served-model-name" in ended.err
    assert by_id["model"]["status_code"] == 404
    assert by_id["model"]["body"]["error"]["code"] == "model_not_found"
    assert by_id["unknown"]["body"]["error"]["param"] == "flavour"
    assert by_id["stream"]["body"]["error"]["param"] == "stream"
    assert all(response["status_code"] in (400, 404) for response in by_id.values())
    assert {line["error"] for line in failed} == {None}


def test_an_alias_serves_a_file_written_for_another_model(mixed, tmp_path):
    output = tmp_path / "out.jsonl"
    assert fake_batch.run(*flags(mixed, output)).code == 0
    again = flags(mixed, output, "--retry-errors", "--served-model-name", "gpt-4o")
    ended = fake_batch.run(*again)
    assert ended.code == 0, ended.err
    assert "3 answered, 10 failed" in ended.err
    assert "model" in {line["custom_id"] for line in read(output)}
    errors = read(tmp_path / "out.errors.jsonl")
    assert len(errors) == 10
    assert "model" not in {line["custom_id"] for line in errors}


def test_strict_stops_and_says_where_to_look(mixed, tmp_path):
    ended = fake_batch.run(*flags(mixed, tmp_path / "out.jsonl", "--strict"))
    assert ended.code == 1
    assert f"--strict is given: see {tmp_path / 'out.errors.jsonl'}" in ended.err


def test_stdin_to_stdout(mixed):
    text = mixed.read_text("utf-8")
    ended = fake_batch.run("--model", "fake", "--input", "-", "--output", "-", stdin=text)
    assert ended.code == 0, ended.err
    assert "kept nowhere" in ended.err
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert len(lines) == 13
    assert {line["custom_id"] for line in lines} >= {"first", "last", "model"}


def test_rows_of_a_table_become_a_table(tmp_path):
    given, output = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text('name,text\none,abc\ntwo,\nthree,"x,\ny"\n', "utf-8")
    more = ("--template", "{text}", "--id-field", "name", "--max-tokens", "3")
    ended = fake_batch.run(*flags(given, output, *more))
    assert ended.code == 0, ended.err
    first, second, third, *_ = output.read_text("utf-8").splitlines()
    assert first == "name,text,output,finish_reason,error"
    assert second == "one,abc,def,length,"
    assert third.startswith("two,,")
    journal = read(tmp_path / "out.csv.journal.jsonl")
    assert {line["custom_id"]: line["output"] for line in journal}["three"] == "z{|"
    again = fake_batch.run("--fake-fail", "it was loaded", *flags(given, output, *more))
    assert again.code == 0, again.err
    given.write_text("name,text\nnew,abc\n" + given.read_text("utf-8").split("\n", 1)[1], "utf-8")
    edited = fake_batch.run(*flags(given, output, *more), "--accept-changes")
    assert edited.code == 0, edited.err
    assert output.read_text("utf-8").splitlines()[1:3] == ["new,abc,def,length,", second]


def test_a_table_that_no_batch_made_is_not_overwritten(tmp_path):
    given, output = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("text\nabc\n", "utf-8")
    output.write_text("precious", "utf-8")
    said = refused(*flags(given, output, "--prompt-field", "text"))
    assert "out.csv: is there, and this batch, which is new, has not made it" in said
    assert output.read_text("utf-8") == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_answers_of_numbered_rows_do_not_go_to_other_rows(tmp_path):
    given, output = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text("text\nabc\n", "utf-8")
    more = flags(given, output, "--prompt-field", "text", "--max-tokens", "3")
    assert fake_batch.run(*more).code == 0
    before = output.read_bytes()
    given.write_text("text\nnew\nabc\n", "utf-8")
    for accept in ((), ("--accept-changes",)):
        assert "give another --output, and --id-field" in refused(*more, *accept)
    assert output.read_bytes() == before


def test_a_home_folder_is_one_to_all_files(tmp_path):
    given, home = tmp_path / "in.csv", tmp_path / "home"
    home.mkdir()
    given.write_text("text\nabc\n", "utf-8")
    (home / "prompt.txt").write_text("{text}", "utf-8")
    more = ("--template-file", "~/prompt.txt", "--errors", "~/errors.jsonl")
    for _ in range(2):
        ended = fake_batch.run("--fake-home", str(home), *flags(given, Path("~/out.csv"), *more))
        assert ended.code == 0, ended.err
    journal = "out.csv.journal.jsonl"
    assert sorted(path.name for path in home.iterdir()) == [
        "errors.jsonl",
        "out.csv",
        *(journal + end for end in ("", ".lock", ".manifest.json")),
        "prompt.txt",
    ]


def test_a_machine_that_cannot_be_measured_answers_all_the_same(given, tmp_path):
    full = ("--fake-full", "RESOURCE_EXHAUSTED: out of memory\nallocating 1 GiB")
    ended = fake_batch.run(*full, *flags(given, tmp_path / "out.jsonl"))
    assert ended.code == 0, ended.err
    assert "no bound is shown: RESOURCE_EXHAUSTED: out of memory allocating 1 GiB\n" in ended.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--output", "x.jsonl"), "input is missing"),
        (("--input", "x.jsonl"), "output is missing"),
        (("--input", "x", "--output", "-", "--sort"), "--sort means nothing"),
        (("--input", "x", "--output", "x.csv"), "a table is for plain rows"),
        (("--input", "x", "--output", "x.tsv"), "nearest: x.csv"),
        (("--input", "x", "--output", "x", "--errors", "e.gz"), "errors is 'e.gz': .gz is not"),
        (("--input", "x", "--output", "x", "--errors", "e.csv"), "they are JSON lines"),
        (("--input", "x", "--output", "~nobody-here/x"), "there is no such home folder"),
        (("--input", "x", "--output", "y", "--system", "z"), "--system is for plain rows"),
        (
            ("--input", "x", "--output", "y", "--prompt-field", "t", "--task", "embedding",
             "--top-k", "1"),
            "--top-k means nothing to --task embedding",
        ),
        (
            ("--input", "x", "--output", "y", "--regex", "a", "--choice", "a"),
            "both --regex and --choice are given",
        ),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(more, said):
    ended = fake_batch.run("--model", "fake", *more)
    assert ended.code == 2
    assert said in ended.err


def test_a_missing_input_is_known_before_a_model_is(tmp_path):
    assert "/absent: is no folder" in refused(*flags(tmp_path / "x", tmp_path / "absent/out.jsonl"))
    assert "none.jsonl" in refused(*flags(tmp_path / "none.jsonl", tmp_path / "out.jsonl"))
