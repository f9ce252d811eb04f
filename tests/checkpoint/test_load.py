import os
from pathlib import Path

import jax
import numpy as np
import platformdirs
import pytest
import tiny_gguf
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from tpuinfer.checkpoint import catalogue, layout, staging
from tpuinfer.checkpoint import load as room
from tpuinfer.checkpoint.catalogue import Entry
from tpuinfer.checkpoint.load import load_params, read_config, resolve, stored_schemes
from tpuinfer.checkpoint.sources import open_source
from tpuinfer.errors import CheckpointError


def abstract_of(
    path: Path, dtype: str = "float32", **shapes: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = SingleDeviceSharding(jax.devices()[0])
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, _) in layout.read_manifest(path).params.items()
    }


def test_a_checkpoint_directory_is_itself(checkpoint: Path, tmp_path: Path) -> None:
    assert resolve(checkpoint, cache_dir=tmp_path / "cache") == checkpoint
    assert resolve(str(checkpoint), cache_dir=tmp_path / "cache") == checkpoint
    assert not (tmp_path / "cache").exists()


def test_a_gguf_file_is_converted_once_per_dtype(llama_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    auto = resolve(llama_file, cache_dir=cache)
    assert layout.read_manifest(auto).dtype == "bfloat16"
    stamp = auto.stat().st_ctime_ns
    assert resolve(llama_file, dtype="bfloat16", cache_dir=cache) == auto
    assert auto.stat().st_ctime_ns == stamp
    exact = resolve(llama_file, dtype="float32", cache_dir=cache)
    assert exact != auto
    assert layout.read_manifest(exact).dtype == "float32"


def test_a_gguf_file_is_kept_as_published_beside_what_it_is_worth(
    llama_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    plain = resolve(llama_file, cache_dir=cache)
    kept = resolve(llama_file, published=True, cache_dir=cache)
    assert kept != plain
    assert stored_schemes(plain) == {}
    assert {name: str(scheme) for name, scheme in stored_schemes(kept).items()} == {
        "embed_tokens.weight": "int8:32"
    }
    assert resolve(llama_file, published=True, cache_dir=cache) == kept
    assert resolve(kept, cache_dir=cache) == kept


def test_a_changed_file_is_converted_anew(llama_file: Path, tmp_path: Path) -> None:
    first = resolve(llama_file, cache_dir=tmp_path / "cache")
    tiny_gguf.write_llama(llama_file, seed=1)
    os.utime(llama_file, ns=(1, 1))
    assert resolve(llama_file, cache_dir=tmp_path / "cache") != first


def test_an_unchanged_file_is_hashed_once(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(llama_file, cache_dir=tmp_path / "cache")

    def never(*_: object) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(staging, "sha256_of", never)
    assert resolve(llama_file, cache_dir=tmp_path / "cache") == first


@pytest.fixture
def tiny_entry(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A catalogue of one model, `tiny`; the list grows with each fetch of it."""
    fetched: list[str] = []
    sha256 = staging.sha256_of(llama_file, "")
    entry = Entry("tiny", "", "MIT", "p", "1", "0" * 64, "m.gguf", sha256, 1)

    def fetch(entry: Entry, cache_dir: Path, progress: object) -> Path:
        fetched.append(entry.name)
        return llama_file

    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry})
    monkeypatch.setattr(room, "fetch", fetch)
    return fetched


def test_a_catalogue_name_is_fetched_and_converted_once(
    tiny_entry: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    path = resolve("tiny")
    layout.verify(path)
    assert resolve("tiny") == path
    assert tiny_entry == ["tiny"]
    assert path.is_relative_to(tmp_path / "tpuinfer")


def test_the_catalogue_wins_and_a_slash_says_the_directory(
    tiny_entry: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.rename(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert resolve("./tiny", cache_dir=tmp_path / "c") == tmp_path / "tiny"
    assert tiny_entry == []
    assert resolve("tiny", cache_dir=tmp_path / "c") != tmp_path / "tiny"
    assert tiny_entry == ["tiny"]


def test_a_bare_name_of_something_that_exists_is_a_path(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert resolve(checkpoint.name) == checkpoint


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smolm2-135m", "did you mean 'smollm2-135m-instruct'"),
        ("none/such", "no such file or directory"),
        ("none.gguf", "no such file or directory"),
        ("gs://bucket/model", "object storage cannot be reached"),
        ("model.safetensors", r"\.safetensors files cannot be read"),
        ("model.txt", "not a GGUF file"),
        ("empty", "is an empty directory"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "model.txt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve(model, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(llama_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        resolve(llama_file, cache_dir=tmp_path / "file")


def test_config_is_read(checkpoint: Path) -> None:
    assert read_config(checkpoint)["model_type"] == "llama"
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_config(checkpoint)


def test_parameters_land_sharded_on_a_mesh(checkpoint: Path, llama_file: Path) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    whole, split = PartitionSpec(), PartitionSpec("model")
    abstract = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            "float32",
            sharding=NamedSharding(mesh, split if leaf.shape[0] % 4 == 0 else whole),
        )
        for name, leaf in abstract_of(checkpoint).items()
    }
    params = load_params(checkpoint, abstract)
    for name, param in open_source(llama_file, "float32").params.items():
        wanted = param.read()
        for shard in params[name].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), wanted[shard.index])
    up_proj = params["layers.0.mlp.up_proj.weight"].addressable_shards
    assert {shard.data.shape for shard in up_proj} == {(32, 64)}


def test_a_model_of_another_shape_is_refused_before_reading(checkpoint: Path) -> None:
    abstract = abstract_of(checkpoint)
    abstract["lm_head.weight"] = abstract.pop("norm.weight")
    with pytest.raises(CheckpointError) as caught:
        load_params(checkpoint, abstract)
    assert "lm_head.weight is missing" in str(caught.value)
    assert "norm.weight is not part of the model" in str(caught.value)


def test_damaged_parameters_are_refused(checkpoint: Path) -> None:
    (checkpoint / "params" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.ocdbt is missing"):
        load_params(checkpoint, abstract_of(checkpoint))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_params(checkpoint / "none", {})


def test_damaged_tables_are_named_before_reading(checkpoint: Path) -> None:
    path = checkpoint / "params" / "state" / "manifest.ocdbt"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"params/state/manifest\.ocdbt is damaged"):
        load_params(checkpoint, abstract_of(checkpoint))


def test_a_cut_file_is_named_before_reading(checkpoint: Path) -> None:
    files = (file for file in (checkpoint / "params").rglob("*") if file.is_file())
    largest = max(files, key=lambda file: file.stat().st_size)
    size = largest.stat().st_size
    os.truncate(largest, size - 1)
    with pytest.raises(CheckpointError, match=f"{largest.name} has {size - 1} bytes, not {size}"):
        load_params(checkpoint, abstract_of(checkpoint))


def test_an_unknown_dtype_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="'float16'"):
        resolve(checkpoint, dtype="float16")
