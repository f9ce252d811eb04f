import json
from pathlib import Path

import pytest

from tpuinfer.checkpoint import layout
from tpuinfer.errors import CheckpointError


def data_file(checkpoint: Path) -> Path:
    """The file that holds most of the parameters' bytes."""
    files = (file for file in (checkpoint / "params").rglob("*") if file.is_file())
    return max(files, key=lambda file: file.stat().st_size)


def test_a_fresh_checkpoint_verifies(checkpoint: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    layout.verify(checkpoint, lambda *step: seen.append(step))
    assert any(label == "verify config.json" and done == total for label, done, total in seen)


def test_one_flipped_byte_is_found(checkpoint: Path) -> None:
    path = data_file(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        layout.verify(checkpoint)


def test_missing_and_extra_files_are_found_together(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "params" / "extra.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        layout.verify(checkpoint)
    assert "tokenizer.json is missing" in str(caught.value)
    assert "params/extra.bin is not in SHA256SUMS" in str(caught.value)


def test_sums_read_as_sha256sum_writes_them(checkpoint: Path) -> None:
    lines = (checkpoint / "SHA256SUMS").read_text().splitlines()
    names = [line.split("  ", 1)[1] for line in lines]
    assert names == sorted(names)
    assert {"config.json", "tpuinfer.json", "tokenizer.json"} < set(names)
    assert all(len(line.split("  ", 1)[0]) == 64 for line in lines)


@pytest.mark.parametrize("text", ["not a sum", "0" * 64 + "  a\n" + "1" * 64 + "  a\n"])
def test_damaged_sums_are_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / "SHA256SUMS").write_text(text)
    with pytest.raises(CheckpointError, match="SHA256SUMS: line"):
        layout.verify(checkpoint)


def test_the_manifest_says_where_it_came_from(checkpoint: Path) -> None:
    manifest = layout.read_manifest(checkpoint)
    assert (manifest.kind, manifest.name, manifest.dtype) == ("gguf", "tiny.gguf", "float32")
    assert len(manifest.sha256) == 64
    assert manifest.params["norm.weight"] == ((64,), "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3 is not known"),
        ({"source": None}, "damaged manifest"),
        ({"params": {"a": {"shape": ["x"], "dtype": "float32"}}}, "damaged manifest"),
        ({"params": [1]}, "damaged manifest"),
    ],
)
def test_a_damaged_manifest_is_refused(
    checkpoint: Path, change: dict[str, object], message: str
) -> None:
    path = checkpoint / "tpuinfer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        layout.read_manifest(checkpoint)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        layout.read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is an empty directory"),
        (["model.safetensors"], "convert makes one of it"),
        (["a.gguf"], "pass the file itself"),
        (["pytorch_model.bin"], "never read"),
        (["_CHECKPOINT_METADATA"], "bare Orbax tree"),
        (["notes.txt"], "is not a checkpoint directory"),
    ],
)
def test_directories_of_other_kinds_are_named(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        layout.check_directory(tmp_path)


def test_a_missing_directory_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        layout.check_directory(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        layout.check_directory(tmp_path / "file")
