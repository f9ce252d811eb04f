"""Quantised tensors of GGUF files by our schemes, against the gguf package's dequantisation."""

from pathlib import Path

import arch_gguf
import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from test_gguf_tensor import finite_blocks

from tpuinfer.checkpoint import assemble, gguf_kinds, quantised
from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.checkpoint.gguf_tensor import TYPES
from tpuinfer.errors import CheckpointError
from tpuinfer.models.blueprint import Weight
from tpuinfer.models.names import Part
from tpuinfer.quant.qarray import QArray, dequantise
from tpuinfer.quant.schemes import Scheme

EXACT = {
    Kind.Q8_0: "int8:32",
    Kind.Q5_0: "int8:32",
    Kind.Q4_0: "int4:32",
    Kind.Q4_1: "int4z:32",
    Kind.Q4_K: "int4z:32",
    Kind.Q6_K: "int8:16",
}
FITTED = (Kind.Q5_1, Kind.Q5_K, Kind.Q3_K, Kind.MXFP4)


def written(path: Path, kind: Kind, tensors: dict[str, np.ndarray]) -> GgufFile:
    return open_gguf(arch_gguf.write(path, "llama", {}, tensors, dict.fromkeys(tensors, kind)))


def blocks(kind: Kind, *shape: int) -> np.ndarray:
    """Random bytes of a tensor of such a shape."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return finite_blocks(kind, int(np.prod(shape)) // block).reshape(*shape[:-1], -1)


def scheme_of(file: GgufFile, parts: tuple[Part, ...], weight: Weight) -> Scheme:
    return gguf_kinds.nearest(file.tensors, {"w": parts}, {"w": weight})["w"]


def values(value: QArray) -> np.ndarray:
    return np.asarray(dequantise(value))


def close(made: np.ndarray, wanted: np.ndarray, word: str) -> None:
    """To the bit; where there is a zero, but for the rounding of float32."""
    if word.startswith("int4z"):
        far = np.abs(wanted).max()
        np.testing.assert_allclose(made, wanted, atol=far * 2e-7, rtol=3e-7)
    else:
        np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(("kind", "word"), EXACT.items(), ids=lambda one: getattr(one, "name", one))
def test_codes_are_those_of_the_file(kind, word, tmp_path, monkeypatch):
    """Random bytes, as no fit would have chosen them; read a few rows at a time."""
    data = blocks(kind, 6, 512)
    file = written(tmp_path / "t.gguf", kind, {"t": data})
    parts, weight = (Part("t", (6, 512)),), Weight((6, 512), ("mlp", "embed"), 1)
    scheme = scheme_of(file, parts, weight)
    assert str(scheme) == word
    monkeypatch.setattr(gguf_kinds, "_PIECE", 1024)
    found = gguf_kinds.read(file.tensors, parts, weight, scheme)
    assert found.values.shape == (6, 512 // scheme.group, scheme.group)
    assert (found.kind, found.grouped) == (scheme.kind, True)
    close(values(found), quants.dequantize(data, kind), word)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q6_K], ids=lambda kind: kind.name)
def test_heads_rotary_pairs_and_experts_keep_their_groups(kind, tmp_path):
    """Each as dequantised values are put in order."""
    word = EXACT[kind]
    tensors = {name: blocks(kind, 8, 512) for name in ("q", "o", "e0", "e1")}
    file = written(tmp_path / "t.gguf", kind, tensors)
    for parts, weight in [
        ((Part("q", (8, 512), rotary=True),), Weight((2, 4, 512), ("heads", "head_dim", None), 1)),
        ((Part("o", (8, 512)),), Weight((8, 32, 16), ("embed", "heads", "head_dim"), 2)),
        (
            (Part("e0", (8, 512), at=0), Part("e1", (8, 512), at=1)),
            Weight((2, 8, 512), ("expert", "expert_mlp", "embed"), 1),
        ),
        ((Part("q", (8, 512), (1, 7, 2)),), Weight((3, 512), ("mlp", "embed"), 1)),
    ]:
        found = gguf_kinds.read(file.tensors, parts, weight, scheme_of(file, parts, weight))
        whole = assemble.read_param(file.tensors, parts, weight.shape, np.dtype(np.float32))
        close(values(found), whole.reshape(found.shape), word)
        assert found.outs == len(weight.shape) - weight.contracted


@pytest.mark.parametrize("kind", FITTED, ids=lambda kind: kind.name)
def test_other_kinds_are_fitted_to_their_values_unrounded(kind, tmp_path):
    data = blocks(kind, 2, 256)
    file = written(tmp_path / "t.gguf", kind, {"t": data})
    parts, weight = (Part("t", (2, 256)),), Weight((2, 256), ("mlp", "embed"), 1)
    scheme = scheme_of(file, parts, weight)
    found = gguf_kinds.read(file.tensors, parts, weight, scheme)
    whole = quants.dequantize(data, kind).astype(np.float32)
    wanted = quantised.on_host(whole, scheme, 1)
    np.testing.assert_array_equal(values(found), values(wanted))
    rounded = quantised.on_host(whole.astype(ml_dtypes.bfloat16), scheme, 1)
    assert kind == Kind.MXFP4 or (values(rounded) != values(wanted)).any()


def test_a_group_that_does_not_fit_is_halved_and_fitted(tmp_path):
    """Rows of 48 inputs in one tensor: blocks of 32 straddle them; groups of 16 do not."""
    file = written(tmp_path / "t.gguf", Kind.Q8_0, {"t": blocks(Kind.Q8_0, 4, 96)})
    parts, weight = (Part("t", (4, 96)),), Weight((4, 2, 48), ("mlp", None, None), 1)
    scheme = scheme_of(file, parts, weight)
    assert str(scheme) == "int8:16"
    found = gguf_kinds.read(file.tensors, parts, weight, scheme)
    whole = assemble.read_param(file.tensors, parts, weight.shape, np.dtype(np.float32))
    np.testing.assert_allclose(values(found), whole, atol=np.abs(whole).max() / 127)


def test_vectors_mixed_kinds_and_other_kinds_are_dequantised(tmp_path):
    path = arch_gguf.write(
        tmp_path / "t.gguf",
        "llama",
        {},
        {"a": blocks(Kind.Q8_0, 4, 64), "b": blocks(Kind.Q4_0, 4, 64), "c": np.ones((4, 64), "f4")},
        {"a": Kind.Q8_0, "b": Kind.Q4_0},
    )
    file = open_gguf(path)
    weight = Weight((8, 64), ("mlp", "embed"), 1)
    names = {
        "mixed": (Part("a", (4, 64), at=0), Part("b", (4, 64), at=1)),
        "exact": (Part("a", (4, 64)),),
        "plain": (Part("c", (4, 64)),),
        "good": (Part("b", (4, 64)),),
    }
    able = dict.fromkeys(names, weight) | {"exact": Weight((8, 64), ("mlp", "embed"))}
    found = gguf_kinds.nearest(file.tensors, names, able)
    assert {name: str(scheme) for name, scheme in found.items()} == {"good": "int4:32"}


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    for kind, at in ((Kind.Q8_0, 0), (Kind.Q4_1, 2)):
        data = blocks(kind, 4, 64)
        data[2, at : at + 2] = 0x00, 0x7C  # infinity
        file = written(tmp_path / "t.gguf", kind, {"t": data})
        parts, weight = (Part("t", (4, 64)),), Weight((4, 64), ("mlp", "embed"), 1)
        match = rf"tensor t \({kind.name}\) holds values that are not finite"
        with pytest.raises(CheckpointError, match=match):
            gguf_kinds.read(file.tensors, parts, weight, scheme_of(file, parts, weight))


def test_every_kind_of_the_table_is_one_that_is_read():
    assert gguf_kinds._NEAREST.keys() <= {kind.name for kind in TYPES.values()}
    assert {kind.name for kind in EXACT} == gguf_kinds._CODES.keys()
