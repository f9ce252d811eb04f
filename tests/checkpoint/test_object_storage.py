"""gs:// with a stand-in: a file system in memory under the name of Google's."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_hf
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from tpuinfer.checkpoint import layout, orbax_store, safetensors
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.load import find, load_params, read_config, resolve
from tpuinfer.checkpoint.paths import changed_at, locate, size_of
from tpuinfer.errors import CheckpointError


class Stand(MemoryFileSystem):
    """Holds what is put under gs://."""

    protocol = ("gs", "gcs")
    store: dict[str, Any] = {}  # noqa: RUF012  # as fsspec's own class has it
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, *args: Any, finalize_on_close: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Stand:
    kept = Stand()
    kept.store.clear()
    kept.pseudo_dirs[:] = [""]
    own = backend._FileSystemSpecBackend()
    monkeypatch.setattr(type(own), "_get_filesystem", lambda self, name: kept)
    return kept


def upload(bucket: Stand, folder: Path, url: str) -> None:
    """Put a folder there in place of what was there before."""
    if bucket.exists(url):
        bucket.rm(url, recursive=True)
    bucket.put(str(folder), url, recursive=True)


def test_a_file_is_read_and_measured(bucket: Stand, tmp_path: Path) -> None:
    upload(bucket, tiny_hf.write(tmp_path / "tiny"), "gs://b/tiny")
    path = locate("gs://b/tiny")
    assert str(path) == "gs://b/tiny"
    assert size_of(path / "LICENSE") == 3
    assert changed_at(path / "LICENSE") == 0  # this storage does not say
    assert changed_at(tmp_path / "tiny" / "LICENSE") > 10**18
    opened = safetensors.open_directory(path)
    for name, wanted in tiny_hf.tensors().items():
        np.testing.assert_array_equal(opened[name].rows(1, 5), wanted[1:5])


def test_a_hugging_face_directory_is_converted_from_there(bucket: Stand, tmp_path: Path) -> None:
    folder = tiny_hf.write(tmp_path / "tiny", shards=2)
    upload(bucket, folder, "gs://b/tiny")
    path = resolve("gs://b/tiny", cache_dir=tmp_path / "cache")
    layout.verify(path)
    assert layout.read_manifest(path).name == "tiny"
    there, here = (
        layout.read_manifest(path),
        layout.read_manifest(convert(folder, tmp_path / "o")),
    )
    assert there.params == here.params
    assert resolve("gs://b/tiny", cache_dir=tmp_path / "cache") == path
    upload(bucket, tiny_hf.write(folder, tiny_hf.tensors(seed=1), shards=2), "gs://b/tiny")
    assert resolve("gs://b/tiny", cache_dir=tmp_path / "cache") != path


def test_a_checkpoint_reaches_orbax_with_its_url(
    bucket: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax reads object storage through TensorStore's own driver: our side up to the call."""
    made = convert(tiny_hf.write(tmp_path / "tiny"), tmp_path / "made")
    upload(bucket, made, "gs://b/made")
    path = resolve("gs://b/made", cache_dir=tmp_path / "cache")
    assert str(path) == "gs://b/made"
    assert read_config(path) == tiny_hf.CONFIG
    layout.verify(path)
    seen: list[str] = []

    def load(where: Path, abstract: dict[str, object], *, partial: bool) -> dict[str, object]:
        seen.append(str(where))
        return abstract

    monkeypatch.setattr(orbax_store, "load", load)
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in layout.read_manifest(path).params.items()
    }
    assert load_params(path, abstract) == abstract
    assert seen == ["gs://b/made/params"]


def test_a_cut_upload_is_named(bucket: Stand, tmp_path: Path) -> None:
    made = convert(tiny_hf.write(tmp_path / "tiny"), tmp_path / "made")
    upload(bucket, made, "gs://b/made")
    table = "gs://b/made/params/state/manifest.ocdbt"
    bucket.pipe(table, bucket.cat(table)[:-1])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in layout.read_manifest(made).params.items()
    }
    with pytest.raises(CheckpointError, match=r"manifest\.ocdbt has \d+ bytes, not \d+"):
        load_params("gs://b/made", abstract)


def test_a_lone_file_there_is_refused(bucket: Stand, tmp_path: Path) -> None:
    bucket.pipe("gs://b/model.gguf", b"GGUF")
    with pytest.raises(CheckpointError, match="a file in object storage; download it"):
        find("gs://b/model.gguf", tmp_path)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        find("gs://b/none", tmp_path)
