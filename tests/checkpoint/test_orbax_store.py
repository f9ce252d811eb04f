import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from tpuinfer.checkpoint import orbax_store
from tpuinfer.errors import CheckpointError

P = PartitionSpec
RNG = np.random.default_rng(0)
ARRAYS = {
    "embed_tokens.weight": RNG.standard_normal((64, 32)).astype(ml_dtypes.bfloat16),
    "layers.0.norm.weight": RNG.standard_normal((32,)).astype(np.float32),
    "layers.0.q_proj.weight": RNG.standard_normal((8, 4, 32)).astype(np.float32),
    "layers": RNG.standard_normal((3,)).astype(np.float32),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    orbax_store.save(tmp_path / "params", ARRAYS.items())
    return tmp_path / "params"


def abstract(
    dtype: str | None = None, **shapes: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = SingleDeviceSharding(jax.devices()[0])
    return {
        name: jax.ShapeDtypeStruct(
            shapes.get(name, array.shape), dtype or array.dtype, sharding=sharding
        )
        for name, array in ARRAYS.items()
    }


def test_dotted_names_shapes_dtypes_and_values_come_back(store: Path) -> None:
    loaded = orbax_store.load(store, abstract())
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(loaded[name]), array)


def test_saving_needs_no_cpu_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(backend: str) -> None:
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", absent)
    orbax_store.save(tmp_path / "params", ARRAYS.items())
    monkeypatch.undo()
    loaded = orbax_store.load(tmp_path / "params", abstract())
    np.testing.assert_array_equal(np.asarray(loaded["layers"]), ARRAYS["layers"])


def test_metadata_tells_shapes_and_dtypes(store: Path) -> None:
    assert orbax_store.metadata(store) == {
        name: (array.shape, array.dtype) for name, array in ARRAYS.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_casts(store: Path, dtype: str) -> None:
    loaded = orbax_store.load(store, abstract(dtype))
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == dtype
        np.testing.assert_array_equal(np.asarray(loaded[name]), array.astype(dtype))


def test_each_device_gets_its_own_shard(store: Path) -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "embed_tokens.weight": P("model", None),
        "layers.0.norm.weight": P(),
        "layers.0.q_proj.weight": P("model", None, "data"),
        "layers": P(),
    }
    wanted = {
        name: jax.ShapeDtypeStruct(
            array.shape, "float32", sharding=NamedSharding(mesh, specs[name])
        )
        for name, array in ARRAYS.items()
    }
    loaded = orbax_store.load(store, wanted)
    assert loaded["embed_tokens.weight"].addressable_shards[0].data.shape == (16, 32)
    assert loaded["layers.0.q_proj.weight"].addressable_shards[0].data.shape == (2, 4, 16)
    for name, array in ARRAYS.items():
        assert loaded[name].sharding == wanted[name].sharding
        for shard in loaded[name].addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data), array.astype(np.float32)[shard.index]
            )


def test_arrays_larger_than_the_limits_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orbax_store, "READ_BYTES", 1)
    monkeypatch.setattr(orbax_store, "WRITE_BYTES", 1)
    monkeypatch.setattr(orbax_store, "CHUNK_BYTES", 1000)
    orbax_store.save(tmp_path / "small", ARRAYS.items())
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("model"))
    whole = NamedSharding(mesh, P())
    wanted = {
        name: jax.ShapeDtypeStruct(
            array.shape, "float32", sharding=whole if array.shape[0] % 8 else split
        )
        for name, array in ARRAYS.items()
    }
    loaded = orbax_store.load(tmp_path / "small", wanted)
    np.testing.assert_array_equal(
        np.asarray(loaded["layers.0.q_proj.weight"]), ARRAYS["layers.0.q_proj.weight"]
    )


def test_all_differences_are_in_one_message(store: Path) -> None:
    wanted = abstract(layers=(4,))
    wanted["extra"] = wanted.pop("layers.0.norm.weight")
    with pytest.raises(CheckpointError) as caught:
        orbax_store.load(store, wanted)
    message = str(caught.value)
    assert "extra is missing" in message
    assert "layers.0.norm.weight is not part of the model" in message
    assert "layers is [3] and the model needs [4]" in message


def damage(store: Path, how: str) -> None:
    data = max(
        (file for file in store.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    match how:
        case "nothing there":
            store.rename(store.with_name("elsewhere"))
        case "empty directory":
            store.rename(store.with_name("elsewhere"))
            store.mkdir()
        case "tree metadata gone":
            (store / "state" / "_METADATA").unlink()
        case "tree metadata no JSON":
            (store / "state" / "_METADATA").write_text("{")
        case "manifest flipped":
            manifest = store / "state" / "manifest.ocdbt"
            data_ = bytearray(manifest.read_bytes())
            data_[len(data_) // 2] ^= 1
            manifest.write_bytes(data_)
        case "manifest gone":
            (store / "state" / "manifest.ocdbt").unlink()
        case "data gone":
            data.unlink()
        case "data cut":
            data.write_bytes(data.read_bytes()[:100])


@pytest.mark.parametrize(
    "how",
    [
        "nothing there",
        "empty directory",
        "tree metadata gone",
        "tree metadata no JSON",
        "manifest flipped",
        "manifest gone",
        "data gone",
        "data cut",
    ],
)
def test_damage_is_one_quiet_line(
    store: Path, how: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damage(store, how)
    with pytest.raises(CheckpointError) as caught:
        orbax_store.load(store, abstract())
    message = str(caught.value)
    assert message.startswith(str(store))
    assert "\n" not in message
    assert len(message) < 500
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_saving_over_something_is_refused(store: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        orbax_store.save(store, ARRAYS.items())


def test_a_good_load_follows_a_bad_one(store: Path) -> None:
    with pytest.raises(CheckpointError):
        orbax_store.load(store.with_name("none"), abstract())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert orbax_store.load(store, abstract())["layers"].shape == (3,)
