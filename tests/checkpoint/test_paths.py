from pathlib import Path

import pytest

from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.errors import CheckpointError


def test_local_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert locate("a/b") == tmp_path / "a" / "b"
    assert locate("~/b") == Path("/home/someone/b")


def test_object_storage_is_never_local() -> None:
    assert is_remote("gs://bucket/model")
    assert not is_remote("/gs/bucket")
    with pytest.raises(CheckpointError, match="gs://bucket/model: object storage"):
        locate("gs://bucket/model")


def test_a_url_that_went_through_pathlib_is_refused() -> None:
    with pytest.raises(CheckpointError, match="pass it as text: gs://bucket/model"):
        locate(Path("gs://bucket/model"))
