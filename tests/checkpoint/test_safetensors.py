"""The reader of safetensors files, judged by the library that writes them."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tpuinfer.checkpoint import safetensors
from tpuinfer.errors import CheckpointError

RNG = np.random.default_rng(0)
KINDS = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def same_bits(left: np.ndarray, right: np.ndarray) -> None:
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    np.testing.assert_array_equal(
        np.ascontiguousarray(left).reshape(-1).view(np.uint8),
        np.ascontiguousarray(right).reshape(-1).view(np.uint8),
    )


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header, however wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any, shape: Any, start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_every_type_is_read_as_the_library_does(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = {kind: RNG.integers(0, 2, (5, 3, 2)).astype(dtype) for kind, dtype in KINDS.items()}
    values["empty"] = np.zeros((0, 4), np.float32)
    save_file(values, path)
    opened = safetensors.open_file(path)
    assert opened.keys() == values.keys()
    for name, wanted in values.items():
        same_bits(opened[name].rows(0, wanted.shape[0]), wanted)
    with safe_open(path, "numpy") as judge:
        for name in values.keys() - {"F8_E4M3", "F8_E5M2"}:  # numpy has no such types
            same_bits(opened[name].rows(0, values[name].shape[0]), judge.get_tensor(name))


def test_rows_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    save_file(
        {
            "a": np.ones(3, np.float32),
            "b": RNG.standard_normal((7, 5))[:, :4].copy().astype(np.float32),
        },
        path,
    )
    monkeypatch.setattr(safetensors, "_BLOCK", 10)
    with safe_open(path, "numpy") as judge:
        wanted = judge.get_slice("b")
        for start, stop in [(0, 7), (2, 5), (6, 7), (3, 3)]:
            same_bits(safetensors.open_file(path)["b"].rows(start, stop), wanted[start:stop])


DAMAGE = {
    "no file": (None, "cannot be read"),
    "empty": (b"", "not even a header's length"),
    "short": (b"\1\0\0", "not even a header's length"),
    "long header": (struct.pack("<Q", 2**40) + b"{}", "its header would have"),
    "cut header": (struct.pack("<Q", 3) + b"{}", "its header would have 3 bytes"),
    "no JSON": (b"{", "not valid JSON"),
    "deep JSON": (b"[" * 100_000, "not valid JSON"),
    "a list": ([], "a JSON list"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        "stands there twice",
    ),
    "no entry": ({"a": 3}, "tensor a is described by '3'"),
    "a type": ({"a": entry("F64", [1], 0, 8)}, "tensor a holds 'F64', which is not read"),
    "no type": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, "holds None"),
    "a list as type": ({"a": entry([], [1], 0, 8)}, "tensor a holds [], which is not read"),
    "negative": ({"a": entry("U8", [-1, -8], 0, 8)}, "has shape"),
    "float": ({"a": entry("U8", [8.0], 0, 8)}, "has shape"),
    "huge": ({"a": entry("U8", [2**50], 0, 8)}, "has shape"),
    "many dims": ({"a": entry("U8", [1] * 9, 0, 8)}, "has shape"),
    "backwards": ({"a": entry("U8", [8], 8, 0)}, "has offsets"),
    "three": ({"a": entry("U8", [8], 0, 8) | {"data_offsets": [0, 8, 8]}}, "has offsets"),
    "bytes": ({"a": entry("F32", [8], 0, 8)}, "takes 8 bytes, and F32 [8] is 32"),
    "more bytes": ({"a": entry("F32", [1], 0, 8)}, "takes 8 bytes, and F32 [1] is 4"),
    "overlap": ({"a": entry("U8", [6], 0, 6), "b": entry("U8", [4], 4, 8)}, "begins at 4"),
    "gap": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [4], 4, 8)}, "begins at 4"),
    "late": ({"a": entry("U8", [6], 2, 8)}, "tensor a begins at 2"),
    "beyond": ({"a": entry("U8", [9], 0, 9)}, "take 9 bytes and it holds 8"),
    "not all": ({"a": entry("U8", [7], 0, 7)}, "take 7 bytes and it holds 8"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes) and not content.startswith((b"{", b"[")):
        path.write_bytes(content)
    elif content is not None:
        raw(path, content, bytes(8))
    with pytest.raises(CheckpointError) as caught:
        safetensors.open_file(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 600


def test_no_cut_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.uint8)}, path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            safetensors.open_file(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="take 29 bytes and it holds 30"):
        safetensors.open_file(path)


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((3, 2), np.float32)}, path)
    tensor = safetensors.open_file(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the file ends inside tensor a"):
        tensor.rows(0, 3)


def test_shards_are_one_model(tmp_path: Path) -> None:
    path = tiny_hf.write(tmp_path / "m", shards=3)
    opened = safetensors.open_directory(path)
    assert opened.keys() == tiny_hf.shapes().keys()
    for name, wanted in tiny_hf.tensors().items():
        same_bits(opened[name].rows(0, wanted.shape[0]), wanted)


def change_index(path: Path, **changes: str) -> None:
    file = path / safetensors.INDEX
    index = json.loads(file.read_text())
    index["weight_map"] |= {key.replace("__", "."): value for key, value in changes.items()}
    file.write_text(json.dumps(index))


def test_all_that_is_wrong_with_shards_is_said_at_once(tmp_path: Path) -> None:
    path = tiny_hf.write(tmp_path / "m", shards=3)
    change_index(path, lm_head__weight="model-00001-of-00003.safetensors", more="w.safetensors")
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        safetensors.open_directory(path)
    message = str(caught.value)
    assert "model-00002-of-00003.safetensors is missing" in message
    assert "w.safetensors is missing" in message
    assert "lm_head.weight is not in model-00001-of-00003.safetensors" in message


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = tiny_hf.write(tmp_path / "m", shards=2)
    same = {"model.norm.weight": np.ones(3, np.float32)}
    for number in (1, 2):
        file = path / f"model-0000{number}-of-00002.safetensors"
        save_file(load_file(file) | same, file)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is both in"):
        safetensors.open_directory(path)


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "a.bin", "b\0"])
def test_an_index_names_files_of_its_directory_only(tmp_path: Path, shard: str) -> None:
    path = tiny_hf.write(tmp_path / "m", shards=2)
    change_index(path, lm_head__weight=shard)
    with pytest.raises(CheckpointError, match="no safetensors file of this directory"):
        safetensors.open_directory(path)


def test_a_lone_file_of_another_name_is_taken(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")
    assert safetensors.open_directory(tmp_path).keys() == {"a"}
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "more.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 safetensors files"):
        safetensors.open_directory(tmp_path)
    (tmp_path / safetensors.INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        safetensors.open_directory(tmp_path)
