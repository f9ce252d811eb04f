"""Block-scaled FP8 and MXFP4 against their definitions, value by value."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tpuinfer.checkpoint import published, safetensors
from tpuinfer.errors import CheckpointError

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def opened(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, published.Tensor]:
    save_file(tensors, folder / "model.safetensors")
    stored = safetensors.open_file(folder / "model.safetensors")
    return published.logical(folder, config, stored)


def fp8(rows: int = 10, columns: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x.weight": rng.standard_normal((rows, columns)).astype(ml_dtypes.float8_e4m3fn),
        "x.weight_scale_inv": rng.uniform(0.1, 3, (-(-rows // 4), -(-columns // 3))).astype(
            np.float32
        ),
    }


@pytest.mark.parametrize(("stated", "dtype"), [("bfloat16", BF16), ("float32", np.float32)])
def test_fp8_is_multiplied_block_by_block_and_rounded_once(
    tmp_path: Path, stated: str, dtype: Any
) -> None:
    stored = fp8()
    values, scales = stored.values()
    tensors = opened(tmp_path, FP8 | {"dtype": stated}, stored | {"y": np.ones(2, BF16)})
    assert tensors.keys() == {"x.weight", "y"}
    tensor = tensors["x.weight"]
    assert (tensor.shape, tensor.dtype) == ((10, 8), dtype)
    wanted = np.array(
        [[np.float32(values[i, j]) * scales[i // 4, j // 3] for j in range(8)] for i in range(10)],
        np.float32,
    ).astype(dtype)
    np.testing.assert_array_equal(tensor.rows(0, 10), wanted)
    for start, stop in [(0, 1), (3, 5), (5, 9), (9, 10)]:
        np.testing.assert_array_equal(tensor.rows(start, stop), wanted[start:stop])


def test_fp8_without_what_scales_it_is_refused(tmp_path: Path) -> None:
    stored = fp8()
    wrong = stored | {"x.weight_scale_inv": np.ones((2, 3), np.float32)}
    with pytest.raises(CheckpointError, match=r"\[2, 3\] does not fit .* it must be \[3, 3\]"):
        opened(tmp_path, FP8, wrong)
    del stored["x.weight_scale_inv"]
    with pytest.raises(CheckpointError, match=r"needs x\.weight_scale_inv"):
        opened(tmp_path, FP8, stored)
    with pytest.raises(CheckpointError, match="weight_block_size in config"):
        opened(tmp_path, {}, fp8())


def test_mxfp4_by_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 3, 2, 16)).astype(np.uint8)
    scales = rng.integers(120, 132, (2, 3, 2)).astype(np.uint8)
    tensors = opened(tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales})
    assert tensors.keys() == {"w"}
    assert (tensors["w"].shape, tensors["w"].dtype) == ((2, 64, 3), BF16)
    values = tensors["w"].rows(0, 2)
    for expert, column, row in np.ndindex(2, 64, 3):
        byte = int(blocks[expert, row, column // 32, column % 32 // 2])
        code = byte >> 4 if column % 2 else byte & 15
        sign = -1 if code & 8 else 1
        scale = 2.0 ** (int(scales[expert, row, column // 32]) - 127)
        assert float(values[expert, column, row]) == sign * E2M1[code & 7] * scale
    np.testing.assert_array_equal(tensors["w"].rows(1, 2), values[1:])


def test_mxfp4_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    blocks, scales = np.zeros((2, 3, 2, 16), np.uint8), np.full((2, 3, 2), 127, np.uint8)
    with pytest.raises(CheckpointError, match=r"no MXFP4 blocks \[E, R, C/32, 16\]"):
        opened(tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales[:1]})
    scales[1, 2, 1] = 255
    tensor = opened(tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales})["w"]
    assert not tensor.rows(0, 1).any()
    with pytest.raises(CheckpointError, match="not a number, of expert 1"):
        tensor.rows(0, 2)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8 without weight_block_size"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
            "fp8 without weight_block_size",
        ),
        ({"quantization_config": {}}, "None"),
    ],
)
def test_other_methods_are_refused_by_name(config: dict[str, Any], what: str) -> None:
    with pytest.raises(CheckpointError, match=f"quantised by {what}; read are fp8"):
        published.check_method(Path("m"), config)


def test_what_is_read_passes() -> None:
    for config in ({}, {"quantization_config": None}, FP8, MXFP4):
        published.check_method(Path("m"), config)


@pytest.mark.parity
def test_mxfp4_equals_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
    mxfp4 = pytest.importorskip(
        "transformers.integrations.mxfp4", reason="needs the parity extra (transformers)"
    )
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (3, 8, 5, 16)).astype(np.uint8)
    scales = rng.integers(100, 150, (3, 8, 5)).astype(np.uint8)
    tensor = opened(tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales})["w"]
    wanted = mxfp4.convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    found = tensor.rows(0, 3).astype(np.float32)
    np.testing.assert_array_equal(found, wanted.float().numpy())
