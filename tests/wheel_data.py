"""Published tokenizers for tests: files inside a wheel, fetched once into the user's cache.

The wheel of mistral-common (Apache-2.0) holds Mistral's SentencePiece models; it is downloaded
pinned by hash, without its dependencies, and neither installed nor imported.
"""

import functools
from pathlib import Path

import pytest

from tpuinfer.checkpoint.catalogue import Entry, File, sum_of_sums
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.load import default_cache_dir
from tpuinfer.errors import CheckpointError

_FILES = (
    File(
        "tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
        493443,
    ),
    File(
        "mistral_instruct_tokenizer_240216.model.v2",
        "37f00374dea48658ee8f5d0f21895b9bc55cb0103939607c8185bfd1c6ca1f89",
        587404,
    ),
    File(
        "mistral_instruct_tokenizer_240323.model.v3",
        "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
        587591,
    ),
    File(
        "mistral_instruct_tokenizer_241114.model.v7",
        "1b968b8dc352f42192367337c78ccc61e1eaddc6d641a579372d4f20694beb7a",
        587562,
    ),
)

_MISTRAL = Entry(
    name="mistral-tokenizers",
    description="Mistral's SentencePiece models, versions 1, 2, 3 and 7",
    licence="Apache-2.0",
    package="mistral-common",
    version="1.13.1",
    wheel_sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    member="mistral_common/data",
    member_sha256=sum_of_sums(_FILES),
    member_size=sum(file.size for file in _FILES),
    files=_FILES,
)

VERSIONS = ("v1", "v2", "v3", "v7")


@functools.cache
def _folder() -> Path | CheckpointError:
    try:
        return fetch(_MISTRAL, default_cache_dir() / "downloads")
    except CheckpointError as error:
        return error


def sentencepiece_model(version: str) -> Path:
    """The model of `version`, one of VERSIONS; skips the test where it cannot be fetched."""
    folder = _folder()
    if isinstance(folder, CheckpointError):
        pytest.skip(str(folder))
    (name,) = (file.name for file in _FILES if file.name.endswith(version))
    return folder / name
