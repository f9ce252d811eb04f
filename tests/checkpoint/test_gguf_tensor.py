"""Tensors of every type, against the gguf package's own dequantisation."""

import os
from pathlib import Path

import arch_gguf
import gguf
import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.checkpoint.gguf_tensor import TYPES
from tpuinfer.errors import CheckpointError

ROWS = np.arange(128, dtype=np.float32).reshape(4, 32)
KINDS = [Kind(type_id) for type_id in TYPES]


def finite_blocks(kind: Kind, count: int) -> np.ndarray:
    """Random blocks [count, bytes] whose scales are numbers: any bytes are a block otherwise."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (2 * count, size), np.uint8)
    with np.errstate(all="ignore"):
        values = quants.dequantize(blocks, kind)
    blocks = blocks[np.isfinite(values).all(axis=1)][:count]
    assert len(blocks) == count
    return blocks


def opened(path: Path, kind: Kind, data: np.ndarray) -> GgufFile:
    """A file with one tensor `t`, given as the bytes of its rows."""
    return open_gguf(arch_gguf.write(path, "llama", {}, {"t": data}, {"t": kind}))


def test_the_type_table_agrees_with_the_gguf_package() -> None:
    for type_id, kind in TYPES.items():
        theirs = Kind(type_id)
        assert kind.name == theirs.name
        assert (kind.block, kind.size) == gguf.GGML_QUANT_SIZES[theirs]


def test_the_usual_types_are_read() -> None:
    usual = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K MXFP4"
    assert set(usual.split()) <= {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_random_blocks_come_back_as_the_gguf_package_has_them(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack [2, 3, 4 blocks], read whole and in parts, five blocks at a time."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    data = finite_blocks(kind, 2 * 3 * 4).reshape(2, 3, -1)
    wanted = quants.dequantize(data, kind)
    file = opened(tmp_path / "t.gguf", kind, data)
    assert file.tensors["t"].shape == wanted.shape == (2, 3, 4 * block)
    np.testing.assert_array_equal(file.read("t"), wanted)
    monkeypatch.setattr("tpuinfer.checkpoint.gguf_tensor._BLOCK_BYTES", 5 * 4 * block)
    np.testing.assert_array_equal(file.read("t"), wanted)
    np.testing.assert_array_equal(file.tensors["t"].rows(1, 2), wanted[1:])
    assert file.tensors["t"].rows(1, 1).shape == (0, 3, 4 * block)


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.MXFP4]
)
def test_quantised_values_come_back_near(kind: Kind, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    file = opened(tmp_path / "t.gguf", kind, quants.quantize(values, kind))
    far = {Kind.Q4_0: 0.3, Kind.Q4_1: 0.3, Kind.MXFP4: 1.0}.get(kind, 0.15)
    np.testing.assert_allclose(file.read("t"), values, atol=far)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_any_stretch_of_a_vector_is_read(kind: Kind, tmp_path: Path) -> None:
    vector = np.arange(96, dtype=np.float32)
    tensor = opened(tmp_path / "t.gguf", kind, quants.quantize(vector, kind)).tensors["t"]
    whole = tensor.rows(0, 96)
    np.testing.assert_allclose(whole, vector, atol=0.5)
    for start, stop in ((0, 1), (31, 33), (40, 96), (50, 50)):
        np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    rows = ROWS.copy()
    rows[2, 3] = value
    for kind in (Kind.F32, Kind.BF16):
        file = opened(tmp_path / "bad.gguf", kind, quants.quantize(rows, kind))
        match = rf"tensor t \({kind.name}\) holds values that are not finite"
        with pytest.raises(CheckpointError, match=match):
            file.read("t")
        np.testing.assert_array_equal(file.tensors["t"].rows(3, 4), rows[3:])


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    data = quants.quantize(ROWS, Kind.Q8_0)
    data[1, :2] = 0xFF
    file = opened(tmp_path / "bad.gguf", Kind.Q8_0, data)
    with pytest.raises(CheckpointError, match=r"tensor t \(Q8_0\) holds values that are not"):
        file.read("t")


def test_a_file_that_shrinks_or_goes_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(tiny_gguf.gguf_bytes({}, {"a": (ROWS, tiny_gguf.F32)}))
    file = open_gguf(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="ends inside tensor a"):
        file.read("a")
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        file.read("a")
