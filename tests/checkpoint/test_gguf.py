import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tpuinfer.checkpoint.gguf import open_gguf
from tpuinfer.errors import CheckpointError

ROWS = np.arange(128, dtype=np.float32).reshape(4, 32)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_metadata_of_every_kind_comes_back_as_python_values(tmp_path: Path) -> None:
    metadata = {
        "text": "grün",
        "flag": True,
        "count": 7,
        "negative": -3,
        "real": 0.5,
        "words": ["a", "", "ß"],
        "numbers": [1, 2, 3],
        "flags": [True, False],
        "reals": [0.25, 4.0],
        "none": [],
    }
    file = open_gguf(write(tmp_path / "m.gguf", tiny_gguf.gguf_bytes(metadata, {})))
    assert file.metadata == metadata
    assert file.tensors == {}


def test_integers_of_every_width_are_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float64("f64", 1e300)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = open_gguf(tmp_path / "w.gguf").metadata
    assert [metadata[key] for key in ("u8", "i8", "u16", "i16", "u64", "i64", "f64")] == [
        200,
        -100,
        60_000,
        -30_000,
        2**63,
        -(2**62),
        1e300,
    ]


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_have_numpy_shapes_and_values(tmp_path: Path, version: int) -> None:
    tensors = {"a": (ROWS, tiny_gguf.F32), "b": (ROWS / 64, tiny_gguf.Q8_0)}
    data = tiny_gguf.gguf_bytes({}, tensors, version=version)
    file = open_gguf(write(tmp_path / "t.gguf", data))
    assert file.tensors["a"].shape == (4, 32)
    np.testing.assert_array_equal(file.read("a"), ROWS)
    assert file.read("a").dtype == np.float32
    np.testing.assert_allclose(file.read("b"), ROWS / 64, atol=0.01)
    assert file.read("b").dtype == np.float32


def test_alignment_is_the_files_own(tmp_path: Path) -> None:
    tensors = {"a": (ROWS[:1, :5], tiny_gguf.F32), "b": (ROWS, tiny_gguf.F32)}
    data = tiny_gguf.gguf_bytes({"general.alignment": 64}, tensors, alignment=64)
    file = open_gguf(write(tmp_path / "t.gguf", data))
    assert file.tensors["b"].offset % 64 == 0
    np.testing.assert_array_equal(file.read("b"), ROWS)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return tiny_gguf.text(name) + dims + struct.pack("<IQ", kind, offset)


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


KEY = tiny_gguf.text("k")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04rest of it", "not a GGUF file"),
        (b"GGUF", "not a GGUF file"),
        (header(version=1), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian version 3"),
        (header(tensors=2**60), "tensor count is"),
        (header(keys=2**60), "metadata count is"),
        (header(keys=1) + struct.pack("<Q", 2**62), "length of metadata key is"),
        (header(keys=1) + struct.pack("<Q", 2**20), "metadata key needs 1048576 bytes"),
        (header(keys=1) + struct.pack("<Q", 1) + b"\xff", "not UTF-8"),
        (header(keys=1) + KEY + struct.pack("<I", 99), "metadata type 99 is not known"),
        (header(keys=1) + KEY + struct.pack("<IB", 7, 2), "neither 0 nor 1"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 9, 1), "array of type 9"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 8, 2**40), "length of k is"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 8, 2**20), "claims 1048576 strings"),
        (header(keys=1) + KEY + struct.pack("<IIQQ", 9, 8, 1, 2**30), "past the end"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 5, 2**20), "k needs 4194304 bytes"),
        (header(keys=2) + (KEY + struct.pack("<II", 4, 1)) * 2, "appears twice"),
        (tiny_gguf.gguf_bytes({"general.alignment": 12}, {}), "general.alignment is 12"),
        (tiny_gguf.gguf_bytes({"general.alignment": "x"}, {}), "general.alignment is 'x'"),
        (header(1) + entry("t", (), 0, 0), "has 0 dimensions"),
        (header(1) + entry("t", (1,) * 5, 0, 0), "has 5 dimensions"),
        (header(1) + entry("t", (0, 4), 0, 0), r"shape \[4, 0\]"),
        (header(1) + entry("t", (33,), 8, 0), "Q8_0 needs .* a multiple of 32"),
        (header(1) + entry("t", (4,), 15, 0), r"type 15 \(Q8_K\), which is not supported"),
        (header(1) + entry("t", (4,), 999, 0), "type 999, which is not supported"),
        (header(1) + entry("t", (4,), 0, 8), "offset 8, no multiple of 32"),
        (header(1) + entry("t", (2**40,), 0, 0), "is the download complete"),
        (header(1) + entry("t", (4,), 0, 2**63), "is the download complete"),
        (header(2) + entry("t", (4,), 0, 0) * 2 + bytes(64), "'t' appears twice"),
        (header(2) + entry("t", (16,), 0, 0) + entry("u", (8,), 0, 32) + bytes(99), "overlaps"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path / "bad.gguf", data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Is a directory"):
        open_gguf(tmp_path)


SMALL = tiny_gguf.gguf_bytes(
    {"general.architecture": "llama", "words": ["ab", "c"], "n": [1, 2], "f": True},
    {"a": (ROWS, tiny_gguf.F32), "b": (ROWS[0], tiny_gguf.Q8_0)},
)
HEAD = len(SMALL) - ROWS.nbytes - 64


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    edits=st.lists(st.tuples(st.integers(0, HEAD), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, len(SMALL))),
)
@example(edits=[], cut=None)
def test_any_damage_gives_a_file_or_one_error(
    tmp_path: Path, edits: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(SMALL)
    for offset, byte in edits:
        data[offset] = byte
    path = write(tmp_path / "fuzz.gguf", bytes(data[:cut]))
    try:
        file = open_gguf(path)
        for name in file.tensors:
            file.read(name)
    except CheckpointError:
        return
    assert cut is None or cut >= HEAD


def test_every_truncation_of_the_header_is_refused(tmp_path: Path) -> None:
    for cut in range(HEAD):
        with pytest.raises(CheckpointError):
            open_gguf(write(tmp_path / "cut.gguf", SMALL[:cut]))


def test_a_vocabulary_opens_fast_and_lean(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(50_000)]
    path = write(tmp_path / "v.gguf", tiny_gguf.gguf_bytes({"words": words, "merges": words}, {}))
    tracemalloc.start()
    open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    start = time.perf_counter()
    assert open_gguf(path).metadata["words"] == words
    assert time.perf_counter() - start < 2.0
