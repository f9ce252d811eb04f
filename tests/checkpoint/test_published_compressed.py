"""compressed-tensors: small cases worked out by hand, several groups, what does not fit, parity."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny_quantised
from safetensors.numpy import save_file

from tpuinfer.checkpoint import published, published_groups, safetensors
from tpuinfer.checkpoint.coded import Coded
from tpuinfer.errors import CheckpointError

METHODS = tiny_quantised.METHODS
INT = tiny_quantised.INT


def stated(method: str) -> dict[str, Any]:
    return {"quantization_config": METHODS[method].config, "dtype": "float32"}


def opened(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    save_file(tensors, folder / "model.safetensors")
    stored = safetensors.open_file(folder / "model.safetensors")
    return published.logical(folder, config, stored)


def test_packed_codes_by_hand(tmp_path: Path) -> None:
    """Nine inputs in two words, the second with room to spare; zeros of rows lie in one word."""
    tensors = {
        "x.weight_packed": np.array([[0x76543210, 0xF], [0, 1]], np.int32),
        "x.weight_scale": np.array([[0.5], [2.0]], np.float32),
        "x.weight_shape": np.array([2, 9], np.int64),
        "x.weight_zero_point": np.array([[0x3A]], np.int32),
    }
    weights = INT | tiny_quantised.CHANNEL | {"num_bits": 4, "symmetric": False}
    config = tiny_quantised.compressed("pack-quantized", weights=weights)
    (weight,) = opened(
        tmp_path, {"quantization_config": config, "dtype": "float32"}, tensors
    ).values()
    assert (weight.name, weight.shape) == ("x.weight", (2, 9))
    first = [0.5 * (code - 10) for code in (0, 1, 2, 3, 4, 5, 6, 7, 15)]
    second = [2.0 * (code - 3) for code in (0, 0, 0, 0, 0, 0, 0, 0, 1)]
    np.testing.assert_array_equal(weight.rows(0, 2), [first, second])
    np.testing.assert_array_equal(weight.rows(1, 2), [second])


def test_a_packed_order_of_inputs_is_followed(tmp_path: Path) -> None:
    made = METHODS["w4a16"].pack(np.random.default_rng(0), 4, 16)
    tensors = {f"x.{end}": array for end, array in made.tensors.items()}
    order = np.array([1, 0] * 8, np.int32)
    (weight,) = opened(tmp_path, stated("w4a16"), tensors | {"x.weight_g_idx": order}).values()
    scale = made.tensors["weight_scale"].astype(np.float32)
    codes = np.round(made.values / scale[:, np.arange(16) // 8])
    np.testing.assert_array_equal(weight.rows(0, 4), codes * scale[:, order])
    assert not weight.is_exact()
    none = np.full(16, -1, np.int32)
    (weight,) = opened(tmp_path, stated("w4a16"), tensors | {"x.weight_g_idx": none}).values()
    np.testing.assert_array_equal(weight.rows(0, 4), made.values)
    assert weight.is_exact()


def several() -> dict[str, Any]:
    """Three groups, each of another width: found by name, by pattern and by class."""

    def group(bits: int, target: str) -> dict[str, Any]:
        return {"targets": [target], "weights": {"num_bits": bits, "strategy": "channel"}}

    groups = {
        "a": group(4, "Linear") | {"format": "pack-quantized"},
        "b": group(8, "re:.*down_proj$") | {"format": "naive-quantized"},
        "c": group(8, "l.0.q_proj") | {"format": "pack-quantized"},
    }
    method = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    return {"quantization_config": method | {"config_groups": groups}, "dtype": "float32"}


def test_each_module_is_of_the_group_that_targets_it(tmp_path: Path) -> None:
    published.check_method(tmp_path, several())
    rng = np.random.default_rng(0)
    packs = {
        "l.0.q_proj": tiny_quantised.packed(8, group=-1),
        "l.1.q_proj": tiny_quantised.packed(4, group=-1),
        "l.0.down_proj": tiny_quantised.int8(lambda _: 1),
    }
    made = {module: pack(rng, 8, 16) for module, pack in packs.items()}
    tensors = {
        f"{module}.{end}": array
        for module, one in made.items()
        for end, array in one.tensors.items()
    }
    found = opened(tmp_path, several(), tensors | {"norm.weight": np.ones(4, np.float32)})
    assert found.keys() == {"norm.weight", *(f"{module}.weight" for module in packs)}
    for module, one in made.items():
        np.testing.assert_array_equal(found[f"{module}.weight"].rows(0, 8), one.values)


def test_a_module_that_no_group_targets_is_refused(tmp_path: Path) -> None:
    config = several()
    del config["quantization_config"]["config_groups"]["a"]
    made = tiny_quantised.packed(4)(np.random.default_rng(0), 8, 16)
    tensors = {f"l.1.k_proj.{end}": array for end, array in made.tensors.items()}
    with pytest.raises(CheckpointError, match=r"l\.1\.k_proj is stored quantised, and no targets"):
        opened(tmp_path, config, tensors)


def test_an_embedding_is_of_another_class_than_what_is_linear() -> None:
    config = several()["quantization_config"]
    config["config_groups"]["d"] = {"targets": ["Embedding"], "weights": {"num_bits": 4}}
    linear, *_, embedding = groups = published_groups.groups(config)
    assert published_groups.group_of("model.embed_tokens", groups) == embedding != linear
    assert published_groups.group_of("lm_head", groups) == linear


def test_only_symmetric_codes_by_the_token_multiply_in_eight_bits() -> None:
    def dynamic(**inputs: Any) -> bool:
        by_token = tiny_quantised.BY_TOKEN | inputs
        weights = INT | tiny_quantised.CHANNEL | {"num_bits": 8}
        config = tiny_quantised.compressed("int-quantized", weights=weights, inputs=by_token)
        return published_groups.groups(config)[0].dynamic

    assert dynamic()
    assert not dynamic(dynamic=False)
    assert not dynamic(symmetric=False)
    assert not dynamic(strategy="tensor")
    assert not dynamic(num_bits=4)
    assert not dynamic(type="float")


def test_one_level_deeper_as_early_releases_wrote_it(tmp_path: Path) -> None:
    made = METHODS["w8a8"].pack(np.random.default_rng(0), 4, 16)
    tensors = {f"x.{end}": array for end, array in made.tensors.items()}
    outer = {"quant_method": "compressed-tensors", "quantization_config": METHODS["w8a8"].config}
    config = {"compression_config": outer, "dtype": "float32"}
    published.check_method(tmp_path, config)
    np.testing.assert_array_equal(
        opened(tmp_path, config, tensors)["x.weight"].rows(0, 4), made.values
    )


WORDS = np.ones((4, 2), np.int32)


@pytest.mark.parametrize(
    ("method", "name", "array", "says"),
    [
        ("w4a16", "weight_scale", None, r"x\.weight_packed holds codes, which needs x\.weight_sc"),
        ("w4a16", "weight_shape", None, r"holds packed codes, which needs x\.weight_shape"),
        ("w4a16", "weight_shape", np.ones(3, np.int64), r"weight_shape is int64 \[3\], and no two"),
        ("w4a16", "weight_shape", np.array([4, 24]), r"\[4, 24\] in 4 bits is int32 \[4, 3\]"),
        ("w4a16", "weight_scale", np.ones((4, 3), np.float32), r"it must be \[4, 2\]"),
        ("w4a16", "weight_scale", np.ones((4, 2), np.int32), r"weight_scale int32 \[4, 2\] does n"),
        ("w4a16", "weight_g_idx", np.ones(4, np.int32), r"weight_g_idx is int32 \[4\], and .*\[16"),
        ("w4a16-zeros", "weight_zero_point", None, r"asymmetric codes, which needs x\.weight_zero"),
        ("w4a16-zeros", "weight_zero_point", WORDS, r"along the rows it must be \[1, 2\]"),
        ("w8a8", "weight_scale", None, r"x\.weight holds codes, which needs x\.weight_scale"),
        ("w8a8", "weight_scale", np.ones((1, 4), np.float32), r"\[1, 4\] does not fit x\.weight"),
        ("w8a8", "weight", np.ones((2, 2, 2), np.int8), r"codes \[2, 2, 2\], and matrices"),
        ("w8a8-zeros", "weight_zero_point", np.ones(3, np.int8), r"it must be \[4, 1\]"),
        ("fp8-rows", "weight_scale", None, r"x\.weight is FP8, which needs x\.weight_scale_inv or"),
        ("fp8-rows", "weight_scale", np.ones(3, np.float32), r"one for each row, \[4, 1\]"),
        ("fp8-rows", "weight", np.ones((4, 16), np.int8), "int8, and config_groups say float"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, method: str, name: str, array: np.ndarray | None, says: str
) -> None:
    made = METHODS[method].pack(np.random.default_rng(0), 4, 16)
    tensors = {f"x.{end}": one for end, one in made.tensors.items()}
    assert opened(tmp_path, stated(method), tensors).keys() == {"x.weight"}
    if array is None:
        del tensors[f"x.{name}"]
    else:
        tensors[f"x.{name}"] = array
    with pytest.raises(CheckpointError, match=says):
        opened(tmp_path, stated(method), tensors)


PARITY: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "w4-groups": ("pack-quantized", {"num_bits": 4, "group_size": 16}, (1, 16)),
    "w4-zeros": ("pack-quantized", {"num_bits": 4, "group_size": 16, "symmetric": False}, (1, 16)),
    "w4-rows": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, (1, 40)),
    "w8-packed": ("pack-quantized", {"num_bits": 8, "group_size": 8}, (1, 8)),
    "w8-zeros": (
        "pack-quantized",
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
        (1, 40),
    ),
    "int8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}, (1, 40)),
    "int8-zeros": (
        "int-quantized",
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
        (1, 40),
    ),
    "int8-tensor": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}, (12, 40)),
    "fp8-rows": ("float-quantized", {"type": "float", "strategy": "channel"}, (1, 40)),
    "fp8-tensor": ("float-quantized", {"type": "float", "strategy": "tensor"}, (12, 40)),
    "fp8-blocks": (
        "float-quantized",
        {"type": "float", "strategy": "block", "block_structure": [4, 16]},
        (4, 16),
    ),
}
"""Format, what `weights` states, and the block that shares a scale, of a matrix [12, 40 or 48]."""


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", PARITY)
def test_equals_the_package_itself(tmp_path: Path, case: str) -> None:
    """What compressed-tensors wrote, its config among it, against what it reads back."""
    torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
    reason = "needs the package compressed-tensors"
    package = pytest.importorskip("compressed_tensors", reason=reason)
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    form, weights, (high, wide) = PARITY[case]
    rows, width = 12, 40 if wide in (40, 8) else 48
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**weights)
    )
    rng = np.random.default_rng(0)
    asymmetric = not scheme.weights.symmetric
    count = (1,) if high == rows else (-(-rows // high), -(-width // wide))
    top = 8 if scheme.weights.num_bits == 4 else 128
    scale = rng.uniform(0.5, 1.5, count) * (4 / (448 if "float" in form else top))
    state = {
        "weight": torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32)),
        "weight_scale": torch.from_numpy(scale).float(),
    }
    if asymmetric:
        zeros = rng.integers(-top, top, count).astype(np.int8)
        state["weight_zero_point"] = torch.from_numpy(zeros)
    compressor = package.BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    reference = compressor.decompress(stored, scheme)["weight"].float().numpy()
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="compressed"
    )
    found = json.loads(config.model_dump_json()) | {"quant_method": "compressed-tensors"}
    read = {"quantization_config": found, "dtype": "float32"}
    published.check_method(tmp_path, read)
    tensors = opened(tmp_path, read, {f"x.{end}": numpy_of(one) for end, one in stored.items()})
    assert tensors.keys() == {"x.weight"}
    assert isinstance(tensors["x.weight"], Coded)
    np.testing.assert_array_equal(tensors["x.weight"].rows(0, rows), reference)
    np.testing.assert_array_equal(tensors["x.weight"].rows(5, 9), reference[5:9])


def numpy_of(tensor: Any) -> np.ndarray:
    """An array of torch as one of numpy, which has no float8 of its own."""
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        return tensor.view(tensor.new_zeros(()).char().dtype).numpy().view(ml_dtypes.float8_e4m3fn)
    return np.ascontiguousarray(tensor.numpy())
