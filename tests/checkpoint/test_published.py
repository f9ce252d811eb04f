"""Block-scaled FP8 and MXFP4 against their definitions, value by value; and what is refused."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny_quantised
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


@pytest.mark.parametrize("columns", [4, 8, 9])
@pytest.mark.parametrize(("stated", "dtype"), [("bfloat16", BF16), ("float32", np.float32)])
def test_fp8_is_multiplied_block_by_block_and_rounded_once(
    tmp_path: Path, stated: str, dtype: Any, columns: int
) -> None:
    stored = fp8(columns=columns)
    values, scales = stored.values()
    tensors = opened(tmp_path, FP8 | {"dtype": stated}, stored | {"y": np.ones(2, BF16)})
    assert tensors.keys() == {"x.weight", "y"}
    tensor = tensors["x.weight"]
    assert (tensor.shape, tensor.dtype) == ((10, columns), dtype)
    wanted = np.array(
        [
            [np.float32(values[i, j]) * scales[i // 4, j // 3] for j in range(columns)]
            for i in range(10)
        ],
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
    vector = stored | {"x.weight": stored["x.weight"][0].copy()}
    with pytest.raises(CheckpointError, match=r"x\.weight is FP8 \[8\], and matrices are read"):
        opened(tmp_path, FP8, vector)
    del stored["x.weight_scale_inv"]
    with pytest.raises(
        CheckpointError, match=r"FP8, which needs x\.weight_scale_inv or x\.weight_s"
    ):
        opened(tmp_path, FP8, stored)
    with pytest.raises(CheckpointError, match="blocks need weight_block_size in config"):
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
    with pytest.raises(CheckpointError, match="w_blocks holds MXFP4 blocks, which needs w_scales"):
        opened(tmp_path, MXFP4, {"w_blocks": blocks})
    scales[1, 2, 1] = 255
    tensor = opened(tmp_path, MXFP4, {"w_blocks": blocks, "w_scales": scales})["w"]
    assert not tensor.rows(0, 1).any()
    with pytest.raises(CheckpointError, match="not a number, of expert 1"):
        tensor.rows(0, 2)


def ct(form: Any = "pack-quantized", **weights: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    stated = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 8} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": stated}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


GPTQ = {"quant_method": "gptq", "bits": 4}
AWQ = {"quant_method": "awq"}
OTHERS = {
    "'bitsandbytes'": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "'aqlm'": {"quant_method": "aqlm"},
    "'hqq'": {"quant_method": "hqq"},
    "'fbgemm_fp8'": {"quant_method": "fbgemm_fp8"},
    "'modelopt'": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "None": {},
    "'int8'": "int8",
    r"\['fp8'\]": {"quant_method": ["fp8"]},
    r"fp8 with weight_block_size \[128, 0\]": FP8["quantization_config"]
    | {"weight_block_size": [128, 0]},
    "fp8 with experts in 'fp4'": FP8["quantization_config"] | {"expert_dtype": "fp4"},
    "gptq with None bits": {"quant_method": "gptq"},
    "gptq with 3 bits": GPTQ | {"bits": 3},
    "gptq with checkpoint_format 'marlin'": GPTQ | {"checkpoint_format": "marlin"},
    "gptq in the format of marlin": GPTQ | {"is_marlin_format": True},
    "gptq packed in int16": GPTQ | {"pack_dtype": "int16"},
    "gptq with dynamic sizes": GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}},
    "gptq with group_size 0": GPTQ | {"group_size": 0},
    "awq with version 'GEMV'": AWQ | {"version": "GEMV"},
    "awq with 8 bits": AWQ | {"bits": 8},
    "awq without zero points": AWQ | {"zero_point": False},
    "awq with group_size '128'": AWQ | {"group_size": "'128'"},
    "compressed-tensors with format 'nvfp4-pack-quantized'": ct("nvfp4-pack-quantized"),
    "compressed-tensors with format 'marlin-24'": ct("marlin-24"),
    "compressed-tensors with format None": ct(None),
    "compressed-tensors with sparse weights, 'sparse-24-bitmask'": ct()
    | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    "compressed-tensors with a transform_config": ct()
    | {"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
    "compressed-tensors with config_groups None": {"quant_method": "compressed-tensors"},
    "compressed-tensors with weights None in group_0": ct()
    | {"config_groups": {"group_0": {"weights": None}}},
    "compressed-tensors with 3 bits of 'int' in group_0": ct(num_bits=3),
    "compressed-tensors with 4 bits of 'float' in group_0": ct(type="float"),
    "compressed-tensors with dynamic weights in group_0": ct(dynamic=True),
    "compressed-tensors with strategy 'tensor_group' in group_0": ct(strategy="tensor_group"),
    "compressed-tensors with group_size None in group_0": ct(group_size=None),
    "compressed-tensors with block_structure None in group_0": ct(strategy="block"),
    "compressed-tensors with symmetric no in group_0": ct(symmetric="no"),
    r"compressed-tensors with targets \['re:\('\] in group_0": ct()
    | {"config_groups": {"group_0": ct()["config_groups"]["group_0"] | {"targets": ["re:("]}}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_read_is_refused_by_name(what: str) -> None:
    with pytest.raises(CheckpointError, match=f"quantised by {what}.*; read are fp8"):
        published.check_method(Path("m"), {"quantization_config": OTHERS[what]})


def test_the_older_name_of_the_entry_is_read_too() -> None:
    with pytest.raises(CheckpointError, match="'sparseml'"):
        published.check_method(Path("m"), {"compression_config": {"quant_method": "sparseml"}})


def test_what_is_read_passes() -> None:
    for config in ({}, {"quantization_config": None}, FP8, MXFP4, {"compression_config": ct()}):
        published.check_method(Path("m"), config)
    for found in (GPTQ, AWQ, GPTQ | {"dynamic": {"-:.*mlp.*": {}}}, {"quant_method": "fp8"}):
        published.check_method(Path("m"), {"quantization_config": found})
    for method in tiny_quantised.METHODS.values():
        published.check_method(Path("m"), {"quantization_config": method.config})


def test_scales_of_activations_and_of_the_cache_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = fp8() | {"x.input_scale": np.ones(1, np.float32), "k.k_scale": np.ones(1, np.float32)}
    with caplog.at_level("INFO", "tpuinfer.checkpoint.published"):
        assert opened(tmp_path, FP8, stored).keys() == {"x.weight"}
    assert "2 scales of activations or of the KV cache are not used" in caplog.text


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
