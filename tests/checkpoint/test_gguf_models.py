"""GGUF files of every architecture, through the real conversion."""

import contextlib
import dataclasses
import json
from pathlib import Path

import arch_gguf
import gguf
import jax
import numpy as np
import pytest
from arch_gguf import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

from tpuinfer.checkpoint import catalogue, gguf_config, gguf_split, layout
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.checkpoint.load import default_cache_dir, load_params
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError
from tpuinfer.models import registry

BY_NAME = {case.name: case for case in CASES}


def read_back(path: Path) -> dict[str, np.ndarray]:
    """Parameters of a checkpoint directory as the engine loads them."""
    sharding = SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in layout.read_manifest(path).params.items()
    }
    return {name: np.asarray(array) for name, array in load_params(path, abstract).items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parameters_and_config_are_those_of_the_model(case: Case, tmp_path: Path) -> None:
    params = arch_gguf.draw(case.hf)
    source = arch_gguf.write_case(tmp_path / "model.gguf", case, params)
    target = convert(source, tmp_path / "out", "float32")
    found = read_back(target)
    assert found.keys() == params.keys()
    for name, wanted in params.items():
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    config = json.loads((target / "config.json").read_text())
    assert registry.read_config(config) == registry.read_config(case.hf)


def test_every_architecture_of_every_family_has_a_case_and_a_reader() -> None:
    served = {
        (architecture, family.name)
        for family in registry.families().values()
        for architecture in family.architectures
    }
    assert {(c.architecture, registry.read_config(c.hf).family) for c in CASES} == served
    assert gguf_config.ARCHITECTURES.keys() == {architecture for architecture, _ in served}


def apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts as files had them at first: each matrix a tensor of its own."""
    found = {}
    for name, values in tensors.items():
        if "_exps." in name:
            found |= {name.replace("_exps", f".{e}"): one for e, one in enumerate(values)}
        else:
            found[name] = values
    return found


def test_experts_of_old_files_are_stacked(tmp_path: Path) -> None:
    case = BY_NAME["mixtral"]
    params = arch_gguf.draw(case.hf)
    tensors = apart(arch_gguf.tensors_of(case, params))
    assert "blk.2.ffn_down.4.weight" in tensors
    keys = arch_gguf.keys_of(case)
    source = arch_gguf.write(tmp_path / "old.gguf", "llama", keys, tensors)
    found = read_back(convert(source, tmp_path / "out", "float32"))
    for name, wanted in params.items():
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def test_a_missing_expert_of_an_old_file_is_named(tmp_path: Path) -> None:
    case = BY_NAME["mixtral"]
    tensors = apart(arch_gguf.tensors_of(case, arch_gguf.draw(case.hf)))
    del tensors["blk.1.ffn_up.3.weight"]
    source = arch_gguf.write(tmp_path / "old.gguf", "llama", arch_gguf.keys_of(case), tensors)
    with pytest.raises(CheckpointError, match=r"gguf: blk\.1\.ffn_up\.3\.weight is missing$"):
        convert(source, tmp_path / "out")


def test_all_tensors_that_do_not_fit_are_in_one_message(tmp_path: Path) -> None:
    case = BY_NAME["qwen3"]
    tensors = arch_gguf.tensors_of(case, arch_gguf.draw(case.hf))
    del tensors["blk.0.attn_q_norm.weight"]
    tensors["blk.1.attn_q.bias"] = np.zeros(60, np.float32)
    tensors["output_norm.weight"] = np.ones(32, np.float32)
    tensors["rope_factors_long.weight"] = tensors["rope_factors_short.weight"] = np.ones(
        5, np.float32
    )
    tensors["rope_freqs_swa.weight"] = np.ones(5, np.float32)
    source = arch_gguf.write(tmp_path / "x.gguf", "qwen3", arch_gguf.keys_of(case), tensors)
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out")
    message = str(caught.value)
    assert "blk.0.attn_q_norm.weight is missing" in message
    assert "blk.1.attn_q.bias [60] is not part of the model" in message
    assert "output_norm.weight is [32] and the model needs [48]" in message
    assert "rope_freqs_swa.weight [5] is not part of the model" in message
    assert "rope_factors" not in message


def test_quantised_experts_are_what_the_gguf_package_makes_of_them(tmp_path: Path) -> None:
    """GPT-OSS as it is published: experts in MXFP4, the rest in F32."""
    case = BY_NAME["gpt-oss"]
    case = dataclasses.replace(
        case,
        hf=case.hf | {"hidden_size": 64, "intermediate_size": 32},
        keys=case.keys | {"expert_feed_forward_length": 32},
    )
    params = arch_gguf.draw(case.hf)
    tensors = arch_gguf.tensors_of(case, params)
    kind = gguf.GGMLQuantizationType.MXFP4
    types = {name: kind for name in tensors if name.endswith("_exps.weight")}
    stored = {name: gguf.quants.quantize(tensors[name], kind) for name in types}
    keys = arch_gguf.keys_of(case)
    source = arch_gguf.write(tmp_path / "q.gguf", "gpt-oss", keys, tensors | stored, types)
    found = read_back(convert(source, tmp_path / "out", "float32"))
    for name, wanted in params.items():
        layer, experts, rest = name.partition(".mlp.experts.")
        if experts and rest.endswith("weight"):
            matrix = rest.split("_")[0]
            ggml = f"blk.{layer.removeprefix('layers.')}.ffn_{matrix}_exps.weight"
            wanted = gguf.quants.dequantize(stored[ggml], kind)
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


_VALUES = st.one_of(
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1, -1, 0.0, 0.5, 1.0, float("nan"), 1e30, True, False]),
    st.sampled_from(["", "none", "yarn", "longrope", "linear", [], [1], ["x"], [True] * 3]),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("files")
    written = {
        case.name: arch_gguf.write_case(folder / case.name, case, arch_gguf.draw(case.hf))
        for case in CASES
    }
    return {name: open_gguf(path) for name, path in written.items()}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_metadata_gives_a_model_or_one_error(
    files: dict[str, GgufFile], data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(CASES))
    names = [*arch_gguf.keys_of(case), "expert_count", "attention.sliding_window_pattern"]
    changed = data.draw(st.dictionaries(st.sampled_from(names), _VALUES, max_size=3))
    file = files[case.name]
    metadata = file.metadata | {f"{case.architecture}.{key}": changed[key] for key in changed}
    model = dataclasses.replace(file, metadata=metadata)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CheckpointError):
        patch.setattr(gguf_split, "open_model", lambda path: model)
        open_source(file.path, "float32", sha256="0")


@pytest.mark.model
def test_the_real_model_is_what_the_gguf_package_makes_of_its_file(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: GGUF -> Orbax -> devices, beside the cache (its tokenizer is real)."""
    entry = catalogue.find("smollm2-135m-instruct")
    path = fetch(entry, default_cache_dir() / "downloads")
    tensors = gguf.GGUFReader(path).tensors
    stored = {tensor.name: tensor for tensor in tensors}
    found = read_back(convert(path, tmp_path / "model", "float32"))
    for name, ggml, heads in (
        ("embed_tokens.weight", "token_embd", 0),
        ("layers.0.self_attn.q_proj.weight", "blk.0.attn_q", 9),
        ("layers.29.self_attn.k_proj.weight", "blk.29.attn_k", 3),
        ("layers.7.self_attn.v_proj.weight", "blk.7.attn_v", 0),
        ("layers.12.mlp.down_proj.weight", "blk.12.ffn_down", 0),
        ("norm.weight", "output_norm", 0),
    ):
        tensor = stored[f"{ggml}.weight"]
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        ours = found[name].reshape(wanted.shape)
        ours = arch_gguf.permute(ours, heads) if heads else ours
        np.testing.assert_array_equal(ours, wanted, err_msg=name)
