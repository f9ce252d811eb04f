"""Whole tiny checkpoints of every method: dequantised by default, kept with --weights published."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_hf
import tiny_quantised
from jax.sharding import NamedSharding, PartitionSpec

from tpuinfer.checkpoint import layout, published_codes
from tpuinfer.checkpoint.coded import Coded, nearest
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.load import load_params
from tpuinfer.checkpoint.sources import Source, open_source
from tpuinfer.errors import CheckpointError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, bytes_of, dequantise
from tpuinfer.quant.schemes import Scheme

METHODS = tiny_quantised.METHODS
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def written(
    folder: Path,
    method: tiny_quantised.Method,
    config: dict[str, Any] = tiny_hf.CONFIG,
    values: dict[str, np.ndarray] | None = None,
) -> tuple[Path, dict[str, np.ndarray]]:
    """A directory, and the values that its quantised matrices mean."""
    values = tiny_hf.tensors() if values is None else values
    stored, means = tiny_quantised.quantised(values, method)
    config = config | {"dtype": method.dtype, "quantization_config": method.config}
    return tiny_hf.write(folder, stored, config), means


def wide(model: Source, name: str) -> np.ndarray:
    """What a parameter's codes stand for, in its shape."""
    read = model.codes[name].read
    assert read is not None
    return np.asarray(dequantise(read())).reshape(model.params[name].shape)


def schemes(model: Source) -> dict[str, str]:
    return {name: str(codes.scheme) for name, codes in model.codes.items()}


def expected(method: tiny_quantised.Method, name: str) -> str:
    narrow, _, other = method.scheme.partition(",")
    return other or narrow if "down_proj" in name else narrow


@pytest.mark.parametrize("name", METHODS)
def test_values_are_dequantised_and_rounded_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpuinfer.checkpoint.assemble.PIECE_BYTES", 4 * 40 * 3)  # 3 or 4 rows
    method = METHODS[name]
    path, means = written(tmp_path / "tiny", method)
    model = open_source(path)
    assert len(means) == 14
    assert not model.config.keys() & {"quantization_config", "compression_config"}
    for tensor, values in means.items():
        param = model.params[tensor.removeprefix("model.")]
        assert param.dtype == DTYPES[method.dtype]
        found = param.read().reshape(values.shape)
        np.testing.assert_array_equal(found, values.astype(param.dtype), tensor)


@pytest.mark.parametrize("name", METHODS)
def test_codes_stand_for_the_same_values(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_codes, "_PIECE", 40 * 3)
    method = METHODS[name]
    path, means = written(tmp_path / "tiny", method)
    model = open_source(path)
    able = {tensor.removeprefix("model."): values for tensor, values in means.items()}
    assert schemes(model) == {own: expected(method, own) for own in able}
    for own, values in able.items():
        if method.exact:
            np.testing.assert_array_equal(wide(model, own).reshape(values.shape), values, own)
        else:
            assert model.codes[own].read is None


KEPT = ("awq", "gptq-desc-act", "w8a8", "fp8-blocks")


@pytest.mark.parametrize("name", KEPT)
def test_a_conversion_keeps_what_is_published(tmp_path: Path, name: str) -> None:
    method = METHODS[name]
    path, means = written(tmp_path / "tiny", method)
    target = convert(path, tmp_path / "out", weights="published")
    manifest = layout.read_manifest(target)
    own = {tensor.removeprefix("model."): values for tensor, values in means.items()}
    found = {one: str(scheme) for one, (scheme, _, _) in manifest.schemes.items()}
    assert found == {one: expected(method, one) for one in own}
    size = sum(bytes_of(*manifest.params[one]) for one in own)
    codes = sum(values.size for values in own.values())
    assert size == (codes // 2 if method.scheme.startswith("int4") else codes)
    loaded = load_params(target, wanted(manifest))
    for one, values in own.items():
        assert isinstance(loaded[one], QArray)
        found_values = np.asarray(dequantise(loaded[one])).reshape(values.shape)
        if method.exact:
            np.testing.assert_array_equal(found_values, values)
        else:
            np.testing.assert_allclose(found_values, values, atol=np.abs(values).max() / 100)


def wanted(manifest: layout.Manifest) -> dict[str, Any]:
    """Everything as it is stored, on one device."""
    mesh = jax.make_mesh((1,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    place = NamedSharding(mesh, PartitionSpec())

    def on(one: Any) -> Any:
        return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=place)

    beside = {name + end for name in manifest.schemes for end in (".scale", ".zero")}
    plain = {
        name: on(jax.ShapeDtypeStruct(shape, np.dtype(kind)))
        for name, (shape, kind) in manifest.params.items()
        if name not in beside | manifest.schemes.keys()
    }
    coded = {
        name: jax.tree.map(on, fit.abstract(scheme, shape, contracted))
        for name, (scheme, shape, contracted) in manifest.schemes.items()
    }
    return plain | coded


PHI3 = tiny_hf.CONFIG | {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "pad_token_id": 0,
}


def phi3() -> dict[str, np.ndarray]:
    """The tiny model with queries, keys and values in one tensor, and gate and up in another."""
    values = tiny_hf.tensors()
    fused = {
        "self_attn.qkv_proj": [f"self_attn.{one}_proj" for one in "qkv"],
        "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    }
    for index in range(tiny_hf.L):
        for into, names in fused.items():
            at = f"model.layers.{index}."
            rows = [values.pop(f"{at}{name}.weight") for name in names]
            values[f"{at}{into}.weight"] = np.concatenate(rows)
    return values


@pytest.mark.parametrize("name", ["awq", "gptq-sym", "w4a16-zeros", "w8a8", "mistral", "deepseek"])
def test_fused_matrices_are_cut_into_their_rows(tmp_path: Path, name: str) -> None:
    path, means = written(tmp_path / "tiny", METHODS[name], PHI3, phi3())
    model = open_source(path)
    assert len(model.codes) == 14
    for index in range(tiny_hf.L):
        at = f"layers.{index}."
        qkv = [f"{at}self_attn.{one}_proj.weight" for one in "qkv"]
        halves = [f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight"]
        for tensor, own in {"self_attn.qkv_proj": qkv, "mlp.gate_up_proj": halves}.items():
            values = means[f"model.{at}{tensor}.weight"]
            width = values.shape[1]
            found = np.concatenate([wide(model, one).reshape(-1, width) for one in own])
            np.testing.assert_array_equal(found, values)
            plain = [model.params[one].read().reshape(-1, width) for one in own]
            kind = DTYPES[METHODS[name].dtype]
            np.testing.assert_array_equal(np.concatenate(plain), values.astype(kind))


MIXTRAL = tiny_hf.CONFIG | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}


def test_experts_are_stacked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    config = MIXTRAL | {"dtype": "bfloat16", "quantization_config": METHODS["w8a8"].config}
    names = registry.family_of(registry.read_config(config)).hf_names(registry.read_config(config))
    values = {
        part.tensor: rng.standard_normal(part.shape).astype(tiny_quantised.BF16)
        for parts in names.values()
        for part in parts
    }
    stored, means = dict(values), {}
    for name in values:
        if ".experts." in name or name.endswith("gate.weight"):
            made = METHODS["w8a8"].pack(rng, *values[name].shape)
            del stored[name]
            stored |= {name.removesuffix("weight") + end: one for end, one in made.tensors.items()}
            means[name] = made.values
    model = open_source(tiny_hf.write(tmp_path / "tiny", stored, config))
    at = "layers.1.mlp."
    assert at + "router.weight" not in model.codes  # it is never quantised
    router = means["model.layers.1.block_sparse_moe.gate.weight"]
    np.testing.assert_array_equal(
        model.params[at + "router.weight"].read(), router.astype(tiny_quantised.BF16)
    )
    for ours, theirs in {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.items():
        tensor = f"model.layers.1.block_sparse_moe.experts.{{}}.{theirs}.weight"
        found = wide(model, f"{at}experts.{ours}.weight")
        np.testing.assert_array_equal(found, [means[tensor.format(one)] for one in range(3)])
        assert str(model.codes[f"{at}experts.{ours}.weight"].scheme) == "w8a8"


GPT_OSS = {
    **{"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "vocab_size": 48},
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3},
    **{"num_experts_per_tok": 2, "max_position_embeddings": 64, "dtype": "bfloat16"},
    "quantization_config": {"quant_method": "mxfp4"},
}


def test_mxfp4_experts_are_kept_though_they_lie_the_other_way_round(tmp_path: Path) -> None:
    config = registry.read_config(GPT_OSS)
    rng = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {}
    for parts in registry.family_of(config).hf_names(config).values():
        for part in parts:
            name, shape = part.tensor, part.shape
            if not name.endswith("_proj"):
                stored[name] = rng.standard_normal(shape).astype(tiny_quantised.BF16)
                continue
            experts, columns, rows = shape
            blocks = (experts, rows, columns // 32, 16)
            stored[f"{name}_blocks"] = rng.integers(0, 256, blocks).astype(np.uint8)
            stored[f"{name}_scales"] = rng.integers(110, 130, blocks[:3]).astype(np.uint8)
    model = open_source(tiny_hf.write(tmp_path / "tiny", stored, GPT_OSS))
    assert set(schemes(model).values()) == {"int8:32"}
    assert len(model.codes) == 6
    for name in model.codes:
        plain = model.params[name].read().astype(np.float32)
        assert plain.shape == ((3, 32, 64) if "down" in name else (3, 64, 32))
        assert len(np.unique(plain)) > 50
        np.testing.assert_array_equal(wide(model, name), plain)


def test_a_head_is_kept_as_well_and_vectors_are_not(tmp_path: Path) -> None:
    method = METHODS["gptq-sym"]
    stored, _ = tiny_quantised.quantised(tiny_hf.tensors(), method)
    made = method.pack(np.random.default_rng(1), tiny_hf.V, tiny_hf.D)
    del stored["lm_head.weight"]
    stored |= {f"lm_head.{end}": part for end, part in made.tensors.items()}
    config = tiny_hf.CONFIG | {"quantization_config": method.config}
    model = open_source(tiny_hf.write(tmp_path / "tiny", stored, config))
    np.testing.assert_array_equal(wide(model, "lm_head.weight"), made.values)
    assert not {name for name in model.codes if "norm" in name or "embed" in name}


def test_zeros_where_the_config_says_there_are_none(tmp_path: Path) -> None:
    method = METHODS["gptq"]
    wrong = method._replace(config=dict(method.config) | {"sym": True})
    model = open_source(written(tmp_path / "tiny", wrong)[0])
    name = "layers.0.mlp.up_proj.weight"
    assert model.codes[name].scheme == Scheme("int4", 8)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: config\.json says its codes are"):
        wide(model, name)


def test_matrices_quantised_in_two_ways_are_not_kept(tmp_path: Path) -> None:
    """Experts of one parameter whose groups differ: a scheme has one size."""
    config = registry.read_config(MIXTRAL)
    names = registry.family_of(config).hf_names(config)
    own = weights(registry.build(config))
    name = "layers.0.mlp.experts.up_proj.weight"

    def coded(width: int) -> Coded:
        scheme = nearest("int8", width, 32)
        kind = np.dtype(np.float32)
        return Coded("x", (40, 32), kind, lambda *_: None, width, scheme, True)  # type: ignore[arg-type]

    parts = {name: names[name]}
    for widths, count in [((8, 8, 8), 1), ((8, 16, 8), 0)]:
        tensors = {part.tensor: coded(w) for part, w in zip(names[name], widths, strict=True)}
        assert len(published_codes.codes(tensors, parts, {name: own[name]})) == count
