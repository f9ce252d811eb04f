"""Quantised checkpoints: written, read, read otherwise, and refused when they are damaged."""

import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpuinfer.checkpoint import by_rows, layout, orbax_store, quantised
from tpuinfer.checkpoint import load as room
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.repeat import once
from tpuinfer.engine.plan import abstract_weights, plan_of, repeated
from tpuinfer.errors import CheckpointError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.quant import fit
from tpuinfer.quant.qarray import QArray, dequantise
from tpuinfer.quant.schemes import Schemes

WORDS = ("int8", "w8a8", "fp8:16", "int4:16", "int4z:16,embedding=none")

Converted = Callable[[str], Path]


@pytest.fixture(scope="module")
def converted(_converted_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The tiny model's float32 checkpoint with its weights kept by a scheme; made once."""
    folder = tmp_path_factory.mktemp("quantised")

    @functools.cache
    def make(word: str) -> Path:
        if word == "none":
            return _converted_once
        return convert(_converted_once, folder / word.replace("*", "x"), weights=word)

    return make


def load(path: Path, word: str = "auto", mesh: str = "1") -> dict[str, Any]:
    """As the engine does it; KV heads that it keeps several times, once."""
    config = registry.read_config(room.read_config(path))
    wanted = room.stored_schemes(path) if word == "auto" else word
    plan = plan_of(config, mesh=mesh, dtype="float32", weights=wanted)
    repeats = repeated(plan)
    return once(room.load_params(path, abstract_weights(plan), repeats), repeats)


def read(path: Path) -> dict[str, np.ndarray]:
    """The model's float32 parameters."""
    reader = orbax_store.HostReader(path / layout.PARAMS)
    names = layout.read_manifest(path).params
    return {name: reader(name, np.dtype(np.float32)) for name in names}


def same(one: Any, other: Any) -> None:
    """Two sets of parameters are the same to the bit, in pairs of 4-bit codes or not."""
    assert one.keys() == other.keys()
    one, other = (
        {name: v.packed() if isinstance(v, QArray) else v for name, v in found.items()}
        for found in (one, other)
    )
    for name in one:
        assert jax.tree.structure(one[name]) == jax.tree.structure(other[name]), name
        for left, right in zip(
            jax.tree.leaves(one[name]), jax.tree.leaves(other[name]), strict=True
        ):
            assert (left.shape, left.dtype) == (right.shape, right.dtype), name
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), name


_quantise = jax.jit(fit.quantise, static_argnums=(1, 2))
_dequantise = jax.jit(dequantise)


def by_hand(path: Path, word: str) -> dict[str, Any]:
    """The float32 parameters, quantised one by one."""
    able = weights(registry.build(registry.read_config(room.read_config(path))))
    table = Schemes.parse(word).resolve(able)
    return {
        name: _quantise(jnp.asarray(values), table[name], able[name].contracted)
        if name in table
        else jnp.asarray(values)
        for name, values in read(path).items()
    }


@pytest.mark.parametrize("word", WORDS)
def test_codes_survive_the_round_trip_and_are_those_made_at_load(converted, word):
    stored, plain = converted(word), converted("none")
    layout.verify(stored)
    wanted = by_hand(plain, word)
    assert any(isinstance(value, QArray) for value in wanted.values())
    same(load(stored), wanted)
    same(load(plain, word), wanted)


@pytest.mark.parametrize("word", ["int8", "int4z:16,embedding=none"])
def test_a_mesh_has_the_same_codes_where_their_rows_lie(converted, word):
    stored, plain = converted(word), converted("none")
    wanted = load(stored)
    found = load(stored, mesh="2x4")
    same(found, wanted)
    same(load(plain, word, mesh="2x4"), wanted)
    up, down = (found[f"layers.0.mlp.{name}_proj.weight"] for name in ("up", "down"))
    shards = {part.data.shape for part in up.scale.addressable_shards}
    assert shards == {(32, *up.scale.shape[1:])}  # of 128 rows, on model=4
    if down.grouped:  # 128 inputs in 8 groups, two to a device, two codes in a byte
        assert {part.data.shape for part in down.values.addressable_shards} == {(64, 2, 8)}
        assert {part.data.shape for part in down.zero.addressable_shards} == {(64, 2)}
    else:
        assert {part.data.shape for part in down.values.addressable_shards} == {(64, 32)}
        assert {part.data.shape for part in down.scale.addressable_shards} == {(64,)}


@pytest.mark.parametrize("mesh", ["1", "2x4"])
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("int8", "none"),
        ("int4z:16,embedding=none", "none"),
        ("int4:16", "int8"),
        ("int8", "int4:16"),
    ],
)
def test_what_is_wanted_otherwise_is_made_of_what_codes_stand_for(
    converted, stored, wanted, mesh, caplog
):
    codes = load(converted(stored))
    caplog.set_level(logging.INFO)
    found = load(converted(stored), wanted, mesh)
    (line,) = [record.getMessage() for record in caplog.records if "stored quantised" in record.msg]
    differing = sum(
        isinstance(value, QArray)
        and not (isinstance(found[name], QArray) and value.group == found[name].group)
        for name, value in codes.items()
    )
    name = converted(stored).name
    assert line == (
        f"{name}: {differing} weights are stored quantised and wanted otherwise: "
        "read through float32"
    )
    able = weights(registry.build(registry.read_config(room.read_config(converted(stored)))))
    table = Schemes.parse(wanted).resolve(able)
    expected = {}
    for name, value in codes.items():
        whole = _dequantise(value).reshape(able[name].shape) if isinstance(value, QArray) else value
        if name in table:
            whole = _requantise(value, table[name], able[name].shape, whole)
        expected[name] = whole
    same(found, expected)


def _requantise(value: Any, scheme: Any, shape: tuple[int, ...], whole: jax.Array) -> QArray:
    """Codes that are wanted as they are stay; others are fitted to what they stood for."""
    if isinstance(value, QArray) and fit.scheme_of(value) == scheme:
        return value
    outs = value.outs if isinstance(value, QArray) else 1
    return _quantise(whole, scheme, len(shape) - outs)


def test_the_same_codes_multiplied_otherwise_are_read_as_they_are(converted, caplog):
    caplog.set_level(logging.INFO)
    found, stored = load(converted("int8"), "w8a8"), load(converted("int8"))
    assert not [record for record in caplog.records if "stored quantised" in record.msg]
    name = "layers.1.self_attn.o_proj.weight"
    assert (found[name].kind, stored[name].kind) == ("w8a8", "int8")
    same(
        {name: jax.tree.leaves(value) for name, value in found.items()},
        {name: jax.tree.leaves(value) for name, value in stored.items()},
    )


def test_rows_are_worked_on_in_blocks_and_parameters_in_batches(converted, monkeypatch):
    """Blocks that do not divide the rows, and batches of one: the same bits."""
    monkeypatch.setattr(by_rows, "BLOCK", 640)
    monkeypatch.setattr(quantised, "BATCH_BYTES", 1)
    quantised._program.cache_clear()
    plain = converted("none")
    wanted = by_hand(plain, "int4z:16")
    same(load(plain, "int4z:16"), wanted)
    values = read(plain)["layers.0.self_attn.o_proj.weight"]  # [64, 4, 16]
    jax.clear_caches()
    scheme = wanted["layers.0.self_attn.o_proj.weight"]
    same({"": quantised.on_host(values, fit.scheme_of(scheme), 2)}, {"": scheme})
    quantised._program.cache_clear()


def test_blocks_that_do_not_divide_the_rows(monkeypatch):
    monkeypatch.setattr(by_rows, "BLOCK", 12)
    seen = []

    def work(rows):
        seen.append(rows["a"].shape)
        return rows["a"] * rows["b"][:, None], rows["b"]

    values = {"a": jnp.arange(66.0).reshape(11, 2, 3), "b": jnp.arange(22.0).reshape(11, 2)}
    product, b = by_rows.by_rows(work, values, 2)
    np.testing.assert_array_equal(product, values["a"] * values["b"][..., None])
    np.testing.assert_array_equal(b, values["b"])
    assert {shape[0] for shape in seen} == {2}  # 22 rows: 4 and 3 do not divide them
    seen.clear()
    short = {"a": values["a"][:, 0], "b": values["b"][:, 0]}
    product, _ = by_rows.by_rows(work, short, 1)
    np.testing.assert_array_equal(product, short["a"] * short["b"][:, None])
    assert {shape[0] for shape in seen} == {4, 3}  # 11 rows: two blocks, and the rest


def test_four_bit_codes_take_half_a_byte_each(converted):
    stored = orbax_store.metadata(converted("int4:16") / layout.PARAMS)
    name = "layers.0.mlp.down_proj.weight"
    assert stored[name] == ((64, 8, 8), np.dtype(np.uint8))
    assert stored[f"{name}.scale"] == ((64, 8), np.dtype(np.float32))
    assert f"{name}.zero" not in stored
    assert stored["embed_tokens.weight"] == ((96, 64), np.dtype(np.int8))
    assert stored["norm.weight"] == ((64,), np.dtype(np.float32))


def test_the_manifest_has_each_scheme(converted):
    data = json.loads((converted("int4:16") / layout.MANIFEST).read_text())
    assert data["format"] == 2
    assert data["quantised"]["layers.0.self_attn.o_proj.weight"] == {
        "scheme": "int4:16",
        "shape": [64, 4, 16],
        "contracted": 2,
    }
    assert json.loads((converted("none") / layout.MANIFEST).read_text())["format"] == 1
    schemes = room.stored_schemes(converted("int8"))
    assert {str(scheme) for scheme in schemes.values()} == {"int8"}
    assert room.stored_schemes(converted("none")) == {}


DOWN = "layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "int5"}, "scheme 'int5'"),
        ({"scheme": "none"}, "cannot be none"),
        ({"scheme": 3}, "damaged manifest"),
        ({"scheme": "int4:256"}, f"{DOWN} of \\[64, 128\\] cannot be int4:256"),
        ({"scheme": "int4z:16"}, f"KeyError: '{DOWN}.zero'"),
        ({"scheme": "int4:32"}, r"is \[64, 8, 8\] and the model needs \[64, 4, 16\]"),
        ({"scheme": "int8:16"}, r"is \[64, 8, 8\] and the model needs \[64, 8, 16\]"),
        ({"shape": [128, 64]}, r"is \[64, 8, 8\], and .* is \[128, 64\]"),
        ({"shape": [64, -1]}, "cannot be int4:16 with 1 of"),
        ({"shape": "long"}, "damaged manifest"),
        ({"contracted": 0}, "with 0 of"),
        ({"contracted": 2}, "with 2 of"),
        ({"contracted": None}, "damaged manifest"),
    ],
)
def test_a_damaged_entry_is_refused(converted, tmp_path, change, message):
    path = Path(shutil.copytree(converted("int4:16"), tmp_path / "own"))
    data = json.loads((path / layout.MANIFEST).read_text())
    data["quantised"][DOWN] |= change
    (path / layout.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_scale_is_named(converted, tmp_path):
    path = Path(shutil.copytree(converted("int8"), tmp_path / "own"))
    data = json.loads((path / layout.MANIFEST).read_text())
    del data["params"][f"{DOWN}.scale"]
    (path / layout.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"KeyError: '{DOWN}\.scale'"):
        load(path)


def test_another_model_is_refused_by_the_weight_s_own_shape(converted):
    config = registry.read_config(room.read_config(converted("int8")) | {"intermediate_size": 96})
    abstract = abstract_weights(plan_of(config, dtype="float32", weights="int8"))
    abstract["extra.weight"] = abstract.pop("norm.weight")
    with pytest.raises(CheckpointError) as caught:
        room.load_params(converted("int8"), abstract)
    message = str(caught.value)
    assert "layers.0.mlp.up_proj.weight is [128, 64] and the model needs [96, 64]" in message
    assert "extra.weight is missing" in message
    assert "norm.weight is not part of the model" in message
    assert ".scale" not in message
