"""A Hugging Face directory -> a checkpoint directory: what is read, kept and refused."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_hf
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from tpuinfer.checkpoint import layout, safetensors
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.load import load_params, resolve
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError, ConfigError

TIED = tiny_hf.CONFIG | {"tie_word_embeddings": True}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_hf.write(tmp_path / "tiny")


def read_back(path: Path, dtype: str | None = None) -> dict[str, np.ndarray]:
    sharding = SingleDeviceSharding(jax.devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype or stored, sharding=sharding)
        for name, (shape, stored) in layout.read_manifest(path).params.items()
    }
    return {name: np.asarray(array) for name, array in load_params(path, abstract).items()}


def ours(name: str) -> str:
    return name.removeprefix("model.")


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_keeps_its_bits_and_its_type(tmp_path: Path, shards: int) -> None:
    folder = tiny_hf.write(tmp_path / "tiny", shards=shards)
    params = read_back(convert(folder, tmp_path / "out"))
    wanted = tiny_hf.tensors()
    assert params.keys() == {ours(name) for name in wanted}
    for name, values in wanted.items():
        found = params[ours(name)]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found.reshape(values.shape), values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_type_asked_for_is_stored(folder: Path, tmp_path: Path, dtype: str) -> None:
    path = convert(folder, tmp_path / "out", dtype)
    manifest = layout.read_manifest(path)
    assert manifest.dtype == dtype
    params = read_back(path)
    for name, values in tiny_hf.tensors().items():
        found = params[ours(name)]
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.reshape(values.shape), values.astype(dtype))


def test_the_manifest_says_what_it_was(folder: Path, tmp_path: Path) -> None:
    path = convert(folder, tmp_path / "out")
    layout.verify(path)
    manifest = layout.read_manifest(path)
    assert (manifest.kind, manifest.name, manifest.dtype) == ("safetensors", "tiny", "auto")
    assert manifest.params["norm.weight"] == ((tiny_hf.D,), "float32")
    shape = (tiny_hf.N, tiny_hf.H, tiny_hf.D)
    assert manifest.params[ours(Q_PROJ)] == (shape, "bfloat16")


def test_texts_are_copied_and_nothing_that_could_run(folder: Path, tmp_path: Path) -> None:
    path = convert(folder, tmp_path / "out")
    files = {name for name in layout._files(path) if not name.startswith("params/")}
    assert files == {"config.json", "tpuinfer.json", *tiny_hf.TEXTS}
    for name in ("config.json", *tiny_hf.TEXTS):
        assert (path / name).read_bytes() == (folder / name).read_bytes()


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Add, replace or (None) remove tensors, with __ for a dot."""
    file = folder / "model.safetensors"
    values: dict[str, Any] = load_file(file)
    values |= {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in values.items() if value is not None}, file)


def test_all_that_does_not_fit_is_in_one_message(folder: Path, tmp_path: Path) -> None:
    change(
        folder,
        model__norm__weight=None,
        lm_head__weight=np.ones((3, 4), np.float32),
        model__layers__2__mlp__up_proj__weight=np.ones(5, np.float32),
        model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(4, np.float32),
    )
    with pytest.raises(CheckpointError) as caught:
        convert(folder, tmp_path / "out")
    assert str(caught.value) == (
        f"{folder}: model.norm.weight is missing; "
        f"lm_head.weight is [3, 4] and the model needs [{tiny_hf.V}, {tiny_hf.D}]; "
        "model.layers.2.mlp.up_proj.weight [5] is not part of the model"
    )
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_the_embedding_is_left(tmp_path: Path) -> None:
    values = tiny_hf.tensors()
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    folder = tiny_hf.write(tmp_path / "tied", values, TIED)
    path = convert(folder, tmp_path / "out")
    assert "lm_head.weight" not in layout.read_manifest(path).params
    np.testing.assert_array_equal(
        read_back(path)["embed_tokens.weight"], values["model.embed_tokens.weight"]
    )


def test_a_head_of_its_own_is_not_lost(tmp_path: Path) -> None:
    folder = tiny_hf.write(tmp_path / "tied", config=TIED)
    with pytest.raises(CheckpointError) as caught:
        convert(folder, tmp_path / "out")
    assert str(caught.value) == (
        f"{folder}: lm_head.weight is not model.embed_tokens.weight (their values differ), though "
        "config.json ties them: set tie_word_embeddings to false in config.json to use both"
    )
    assert not (tmp_path / "out").exists()


def test_layers_beyond_the_tensors_are_refused_before_they_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: Any) -> None:
        raise AssertionError("a blueprint was built")

    monkeypatch.setattr("tpuinfer.models.decoder.Decoder.__init__", never)
    config = tiny_hf.CONFIG | {"num_hidden_layers": 4000}
    folder = tiny_hf.write(tmp_path / "tall", config=config)
    count = len(tiny_hf.shapes())
    with pytest.raises(CheckpointError, match=f"is 4000, and there are {count} tensors"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "lama"}, ConfigError, "'lama', which is not supported; nearest: llama"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            CheckpointError,
            "quantised by 'hqq'",
        ),
    ],
)
def test_config_alone_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    def never(path: Path) -> None:
        raise AssertionError("a weight file was opened")

    monkeypatch.setattr(safetensors, "open_directory", never)
    folder = tiny_hf.write(tmp_path / "tiny", config=tiny_hf.CONFIG | changes)
    for call in (convert, lambda source, out: resolve(source, cache_dir=out)):
        with pytest.raises(error, match=message):
            call(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fp8_becomes_bfloat16_and_config_says_so(tmp_path: Path) -> None:
    values = tiny_hf.tensors()
    quantised = values[Q_PROJ].astype(ml_dtypes.float8_e4m3fn)
    scales = np.random.default_rng(0).uniform(1, 2, (2, 2)).astype(np.float32)
    config = tiny_hf.CONFIG | {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}
    }
    stored = values | {Q_PROJ: quantised, f"{Q_PROJ}_scale_inv": scales}
    path = convert(tiny_hf.write(tmp_path / "fp8", stored, config), tmp_path / "out")
    found = read_back(path)[ours(Q_PROJ)]
    wanted = quantised.astype(np.float32) * np.kron(scales, np.ones((16, 16), np.float32))
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted.astype(ml_dtypes.bfloat16))
    assert layout.read_json(path / "config.json") == tiny_hf.CONFIG


def test_a_directory_is_converted_once_and_anew_when_it_changed(
    folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = resolve(folder, cache_dir=cache)
    stamp = (first / layout.SUMS).stat().st_mtime_ns
    assert resolve(str(folder), dtype="float32", cache_dir=cache) == first
    assert (first / layout.SUMS).stat().st_mtime_ns == stamp
    os.utime(folder / "model.safetensors", ns=(1, 1))
    second = resolve(folder, cache_dir=cache)
    assert second != first
    (folder / "tokenizer.json").write_text('{"a": 1}')
    assert resolve(folder, cache_dir=cache) not in (first, second)


def test_values_are_cast_while_loading(folder: Path, tmp_path: Path) -> None:
    path = resolve(folder, dtype="float32", cache_dir=tmp_path / "cache")
    found = read_back(path, "float32")[ours(Q_PROJ)]
    wanted = tiny_hf.tensors()[Q_PROJ].astype(np.float32)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


def test_a_checkpoint_is_a_source_too(folder: Path, tmp_path: Path) -> None:
    first = convert(folder, tmp_path / "first")
    copy = convert(first, tmp_path / "copy")
    same = [replace(layout.read_manifest(path), files={}) for path in (copy, first)]
    assert same[0] == same[1]
    cast = convert(first, tmp_path / "cast", "float32")
    manifest = layout.read_manifest(cast)
    assert (manifest.kind, manifest.name, manifest.dtype) == ("safetensors", "tiny", "float32")
    params = read_back(cast)
    for name, values in read_back(copy).items():
        np.testing.assert_array_equal(params[name], values.astype(np.float32))


def test_a_checkpoint_is_read_in_any_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpuinfer.checkpoint import orbax_store

    monkeypatch.setattr(orbax_store, "READ_BYTES", 3000)
    source = open_source(convert(folder, tmp_path / "out"))
    for name in reversed(source.params):
        hf = name if name.startswith("lm_head") else f"model.{name}"
        wanted = tiny_hf.tensors()[hf]
        found = source.params[name].read()
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"if its config\.json lies beside"):
        convert(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="'int8'"):
        convert(folder, tmp_path / "out", "int8")
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(folder, tmp_path / "out")


def test_a_text_that_is_too_large_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpuinfer.checkpoint.sources._MAX_TEXT", 1000)
    (folder / "tokenizer.json").write_text(" " * 1001)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has 1001 bytes; at most 1000"):
        convert(folder, tmp_path / "out")


def test_links_out_of_the_directory_and_pipes_are_left_out_in_one_line(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "NOTICE").symlink_to(tmp_path / "secret")
    (folder / "LICENSE.old").symlink_to(folder / "gone")
    (folder / "LICENSE.txt").symlink_to("LICENSE")
    os.mkfifo(folder / "pipe.txt")
    (folder / "2_Pooling").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "tpuinfer"):
        texts = open_source(folder).texts
    assert texts.keys() == {"config.json", "LICENSE.txt", *tiny_hf.TEXTS}
    assert texts["LICENSE.txt"] == b"MIT"
    assert caplog.messages == [
        f"{folder}: left out, for they lead elsewhere or are no files: "
        "2_Pooling/config.json, LICENSE.old, NOTICE, pipe.txt"
    ]


def test_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b/blobs"
    blobs.mkdir(parents=True)
    for file in (one for one in folder.rglob("*") if one.is_file()):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = file.rename(blobs / str(len(list(blobs.iterdir()))))
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert open_source(snapshot).texts.keys() == {"config.json", *tiny_hf.TEXTS}


def test_a_config_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: links to a file elsewhere"):
        open_source(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_blocks_nobody(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read .it is no regular file"):
        open_source(folder)
