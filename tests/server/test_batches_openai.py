"""The real openai client against a real server process, which is killed and started again."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_serve
import openai
import pytest
from batched import timeless
from openai.types import Batch

MODEL, URL = "fake", "/v1/completions"


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[fake_serve.Process, openai.OpenAI]]:
    folder.mkdir(exist_ok=True)
    process = fake_serve.Process(folder / "log", *flags, f"--data-dir={folder}")
    try:
        with process.client() as client:
            yield process, client
    finally:
        process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[openai.OpenAI]:
    with serving(tmp_path_factory.mktemp("data"), "--fake-wait=0.001") as (_, client):
        yield client


def request(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": chr(65 + number % 26), "max_tokens": 20, "temperature": 0.5}
    return {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": body | fields}


def created(client: openai.OpenAI, count: int, **fields: Any) -> Batch:
    text = "".join(json.dumps(request(number, **fields)) + "\n" for number in range(count))
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=URL, completion_window="24h", metadata={"job": "7"}
    )


def until(client: openai.OpenAI, batch: Batch, *statuses: str, done: int = 0) -> Batch:
    deadline = time.monotonic() + 20
    while True:
        found = client.batches.retrieve(batch.id)
        if found.status in statuses and found.request_counts.completed >= done:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def answers(client: openai.OpenAI, batch: Batch) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]


def test_upload_create_poll_and_download(server):
    done = until(server, created(server, 40), "completed")
    assert (done.metadata, done.request_counts.completed) == ({"job": "7"}, 40)
    lines = answers(server, done)
    assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(40)]
    for number, line in enumerate(lines[:5]):
        body = request(number, temperature=0)["body"]
        direct = server.completions.create(**body)
        assert line["response"]["body"]["usage"] == direct.usage.model_dump(exclude_none=True)
    assert done.id in [batch.id for batch in server.batches.list(limit=1)]
    files = list(server.files.list(limit=1))
    assert {done.input_file_id, done.output_file_id} <= {file.id for file in files}
    assert server.files.delete(done.output_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        server.files.content(done.output_file_id)


def test_greedy_answers_are_those_of_the_route(server):
    done = until(server, created(server, 5, temperature=0), "completed")
    for number, line in enumerate(answers(server, done)):
        direct = server.completions.create(**request(number, temperature=0)["body"])
        assert line["response"]["body"]["choices"][0]["text"] == direct.choices[0].text


def test_cancel(server):
    batch = created(server, 5000)
    until(server, batch, "in_progress", done=10)
    assert server.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = until(server, batch, "cancelled")
    assert 10 <= len(answers(server, done)) == done.request_counts.completed < 5000
    with pytest.raises(openai.ConflictError):
        server.with_options(max_retries=0).batches.cancel(batch.id)


def test_killed_in_the_middle_and_started_again(server, tmp_path):
    """Every line is there once, and says what it says in an unbroken batch."""
    whole = answers(server, until(server, created(server, 600), "completed"))
    flags = ("--fake-wait=0.001",)
    with serving(tmp_path / "broken", *flags) as (process, client):
        batch = created(client, 600)
        until(client, batch, "in_progress", done=50)
        process.kill()
    with serving(tmp_path / "broken", *flags) as (process, client):
        seen = until(client, batch, "in_progress", done=100).request_counts.completed
        process.kill()
    with serving(tmp_path / "broken", *flags) as (process, client):
        until(client, batch, "in_progress", done=seen)
        begun = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - begun < 5
    with serving(tmp_path / "broken") as (_, client):
        done = until(client, batch, "completed")
        assert (done.request_counts.completed, done.request_counts.failed) == (600, 0)
        assert timeless(answers(client, done)) == timeless(whole)


def test_another_model_does_not_go_on(tmp_path):
    with serving(tmp_path, "--fake-wait=0.001") as (process, client):
        batch = created(client, 5000)
        until(client, batch, "in_progress", done=10)
        process.kill()
    with serving(tmp_path, "--fake-model=other") as (process, client):
        done = until(client, batch, "failed")
        assert [error.code for error in done.errors.data] == ["model_changed"]
        assert len(answers(client, done)) >= 10
        second = subprocess.run(
            [sys.executable, fake_serve.__file__, f"--data-dir={tmp_path}", "--model=fake"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 2
        assert "held by process" in second.stderr


def test_a_signal_does_not_wait_for_a_batch(tmp_path):
    with serving(tmp_path, "--fake-wait=0.05") as (process, client):
        batch = created(client, 100, max_tokens=4000)
        until(client, batch, "in_progress")
        time.sleep(0.2)
        begun = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - begun < 5
