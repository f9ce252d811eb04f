"""GPTQ and AWQ: small cases worked out by hand, what does not fit, and an independent reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_quantised
from safetensors.numpy import save_file

from tpuinfer.checkpoint import published, safetensors
from tpuinfer.checkpoint.coded import Coded
from tpuinfer.errors import CheckpointError

AWQ = {"quantization_config": tiny_quantised.AWQ, "dtype": "float32"}
GPTQ = {"quantization_config": tiny_quantised.GPTQ | {"bits": 4}, "dtype": "float32"}


def opened(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    save_file(tensors, folder / "model.safetensors")
    stored = safetensors.open_file(folder / "model.safetensors")
    return published.logical(folder, config, stored)


def ints(*words: int) -> np.ndarray:
    return np.array(words, np.uint32).view(np.int32)


def test_gptq_by_hand(tmp_path: Path) -> None:
    """Two outputs of eight inputs: a word an output, its lowest four bits the first input."""
    tensors = {
        "x.qweight": ints(0x76543210, 0xFEDCBA98).reshape(1, 2),
        "x.qzeros": ints(0xFFFFFF70).reshape(1, 1),
        "x.scales": np.array([[0.5, 2.0]], np.float16),
    }
    (weight,) = opened(tmp_path, GPTQ, tensors).values()
    assert isinstance(weight, Coded)
    assert (weight.name, weight.shape, weight.dtype) == ("x.weight", (2, 8), np.float32)
    first = [0.5 * (code - 1) for code in range(8)]  # stored zeros are one less: 0 is 1
    second = [2.0 * (code - 8) for code in range(8, 16)]  # and 7 is 8
    np.testing.assert_array_equal(weight.rows(0, 2), [first, second])
    newer = GPTQ | {"quantization_config": GPTQ["quantization_config"] | {"format": "gptq_v2"}}
    (weight,) = opened(tmp_path, newer, tensors).values()
    np.testing.assert_array_equal(weight.rows(1, 2), [[2.0 * (code - 7) for code in range(8, 16)]])


def test_a_zero_of_sixteen_is_one_beyond_the_codes(tmp_path: Path) -> None:
    """What the first format stores as fifteen."""
    tensors = {
        "x.qweight": ints(0xF).reshape(1, 1),
        "x.qzeros": ints(0xF).reshape(1, 1),
        "x.scales": np.ones((1, 1), np.float16),
    }
    (weight,) = opened(tmp_path, GPTQ, tensors).values()
    np.testing.assert_array_equal(weight.rows(0, 1), [[-1] + 7 * [-16]])


def test_awq_by_hand(tmp_path: Path) -> None:
    """Eight outputs of one input: neighbours lie in the order 0 2 4 6 1 3 5 7."""
    tensors = {
        "x.qweight": np.repeat(ints(0x75316420).reshape(1, 1), 8, axis=0),
        "x.qzeros": ints(0x00000030).reshape(1, 1),
        "x.scales": np.array([[1, 2, 4, 1, 1, 1, 1, 1]], np.float16),
    }
    (weight,) = opened(tmp_path, AWQ, tensors).values()
    assert weight.shape == (8, 8)
    found = weight.rows(0, 8)
    np.testing.assert_array_equal(found[:, 0], [0, 2, 4 * (2 - 3), 3, 4, 5, 6, 7])
    assert (found == found[:, :1]).all()
    np.testing.assert_array_equal(weight.rows(3, 6), found[3:6])


def test_inputs_are_in_the_groups_that_g_idx_says(tmp_path: Path) -> None:
    order = np.array([1, 0, 0, 1, 1, 0, 1, 0] * 2, np.int32)
    tensors = {
        "x.qweight": ints(0x11111111, 0x11111111).reshape(2, 1),
        "x.qzeros": ints(0xF, 0xF).reshape(2, 1),
        "x.scales": np.array([[1.0], [10.0]], np.float16),
        "x.g_idx": order,
    }
    (weight,) = opened(tmp_path, GPTQ, tensors).values()
    np.testing.assert_array_equal(weight.rows(0, 1)[0], np.where(order, -150, -15))
    assert not weight.is_exact()
    (weight,) = opened(tmp_path, GPTQ, tensors | {"x.g_idx": np.sort(order)}).values()
    assert weight.is_exact()
    wrong = opened(tmp_path, GPTQ, tensors | {"x.g_idx": order + 1})["x.weight"]
    with pytest.raises(CheckpointError, match=r"x\.g_idx names group 2 .* has groups 0 to 1"):
        wrong.rows(0, 1)


def good(config: dict[str, Any]) -> dict[str, np.ndarray]:
    pack = tiny_quantised.awq if config is AWQ else tiny_quantised.gptq(4)
    made = pack(np.random.default_rng(0), 16, 24)
    return {f"x.{end}": array for end, array in made.tensors.items()}


@pytest.mark.parametrize(
    ("config", "name", "array", "says"),
    [
        (AWQ, "x.scales", None, r"x\.qweight holds codes, which needs x\.scales"),
        (AWQ, "x.qzeros", None, r"which needs x\.qzeros"),
        (AWQ, "x.scales", np.ones((2, 16), np.float16), r"x\.scales \[2, 16\] do not fit"),
        (AWQ, "x.qzeros", np.ones((3, 3), np.int32), "do not fit each other as AWQ in groups of 8"),
        (AWQ, "x.qweight", np.ones((2, 2, 2), np.int32), r"qweight \[2, 2, 2\].* do not fit"),
        (AWQ, "x.scales", np.ones((3, 16), np.int32), "must be int32, int32 and floating point"),
        (GPTQ, "x.scales", None, r"which needs x\.scales"),
        (GPTQ, "x.scales", np.ones((3, 8), np.float16), r"as GPTQ in groups of 8 with 4 bits"),
        (GPTQ, "x.qzeros", np.ones((3, 1), np.int32), r"x\.qzeros \[3, 1\], x\.scales"),
        (GPTQ, "x.qweight", np.ones(3, np.int32), r"qweight \[3\].* do not fit"),
        (GPTQ, "x.g_idx", np.ones(8, np.int32), r"x\.g_idx int32 \[8\] must be int32 \[24\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, config: dict[str, Any], name: str, array: np.ndarray | None, says: str
) -> None:
    tensors = good(config)
    assert opened(tmp_path, config, tensors).keys() == {"x.weight"}
    tensors |= {} if array is None else {name: array}
    if array is None:
        del tensors[name]
    with pytest.raises(CheckpointError, match=says):
        opened(tmp_path, config, tensors)


def test_every_misfit_is_in_one_message(tmp_path: Path) -> None:
    tensors = good(GPTQ)
    tensors |= {f"y.{name[2:]}": array for name, array in tensors.items()}
    del tensors["x.scales"], tensors["y.qzeros"]
    with pytest.raises(CheckpointError, match=r"needs x\.scales; .* needs y\.qzeros"):
        opened(tmp_path, GPTQ, tensors)


def test_biases_that_are_all_zero_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model has none, and early tools wrote one for every module."""
    tensors = good(GPTQ) | {"x.bias": np.zeros(16, np.float16), "z.bias": np.zeros(4, np.float16)}
    meant = opened(tmp_path, GPTQ, tensors)
    with caplog.at_level("INFO", "tpuinfer.checkpoint.published"):
        found = published.without_empty_biases(tmp_path, meant, {"x.weight"})
    assert found.keys() == {"x.weight", "z.bias"}
    assert "1 biases that are all zero are left out" in caplog.text
    assert published.without_empty_biases(tmp_path, meant, {"x.bias"}).keys() == meant.keys()
    tensors["x.bias"][3] = 1
    meant = opened(tmp_path, GPTQ, tensors)
    assert published.without_empty_biases(tmp_path, meant, {"x.weight"}).keys() == meant.keys()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_awq_equals_compressed_tensors(tmp_path: Path) -> None:
    """Words drawn at random, and taken apart by the converter of that package."""
    torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
    module = pytest.importorskip(
        "compressed_tensors.entrypoints.convert.converters.autoawq",
        reason="needs the package compressed-tensors",
    )
    rng = np.random.default_rng(0)
    tensors = {
        "x.qweight": rng.integers(-(2**31), 2**31, (48, 5)).astype(np.int32),
        "x.qzeros": rng.integers(-(2**31), 2**31, (3, 5)).astype(np.int32),
        "x.scales": rng.uniform(0.01, 0.1, (3, 40)).astype(np.float16),
    }
    config = AWQ | {"quantization_config": tiny_quantised.AWQ | {"group_size": 16}}
    (weight,) = opened(tmp_path, config, tensors).values()
    parts = (torch.from_numpy(tensors[f"x.{end}"]) for end in ("qweight", "scales", "qzeros"))
    codes, scale, zero = module.AutoAWQConverter(group_size=16)._convert_gemm_module(*parts)
    spread = (codes.float().reshape(40, 3, 16) - zero.float()[..., None]) * scale.float()[..., None]
    np.testing.assert_array_equal(weight.rows(0, 40), spread.reshape(40, 48).numpy())
