"""A GGUF file in another type: the values within half a step, everything else as it was."""

import math

import gguf
import numpy as np
import pytest
import tiny_model
from checkpoint.tiny_gguf import F16, F32, Q8_0, gguf_bytes, llama_metadata, llama_tensors
from gguf import GGMLQuantizationType as Types
from gguf.quants import dequantize

from tpuinfer.benchmark import requantised
from tpuinfer.benchmark.requantised import file_of, requantise
from tpuinfer.errors import CheckpointError, ConfigError

_SCALE = np.float32(2.0**-11)
"""How far rounding to float16 moves a scale, as a part of it."""


@pytest.fixture
def source(tmp_path):
    """A llama with a router, whose matrices are f32, f16 and q8_0."""
    rng = np.random.default_rng(1)
    router = rng.standard_normal((4, 64)).astype(np.float32)
    narrow = rng.standard_normal((6, 48)).astype(np.float32)
    tensors = llama_tensors(tied=False)
    tensors |= {"blk.0.ffn_gate_inp.weight": (router, F32), "blk.0.narrow.weight": (narrow, F32)}
    path = tmp_path / "source.gguf"
    path.write_bytes(gguf_bytes(llama_metadata(), tensors))
    return path


def tensors_of(path):
    """Name -> (type, values), in the order of the file."""
    return {
        one.name: (one.tensor_type, dequantize(one.data, one.tensor_type))
        for one in gguf.GGUFReader(path).tensors
    }


def keys_of(path):
    return {
        name: (field.types, field.contents())
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


def steps(values, levels):
    """Each element's step where 32 neighbours share a scale: widest range / levels."""
    blocks = values.reshape(-1, 32)
    if levels == 127:
        step = np.abs(blocks).max(axis=-1) / levels
    else:
        step = (blocks.max(axis=-1) - blocks.min(axis=-1)) / levels
    return np.broadcast_to(step[:, None], blocks.shape).reshape(values.shape)


def test_q8_0_is_within_half_a_step_and_vectors_keep_their_bits(source, tmp_path):
    made = tensors_of(requantise(source, tmp_path / "made.gguf", "q8_0"))
    was = tensors_of(source)
    assert list(made) == list(was)
    changed = 0
    for name, (kind, values) in made.items():
        old_kind, old = was[name]
        assert values.shape == old.shape, name
        if kind == old_kind:
            np.testing.assert_array_equal(values, old)
            continue
        changed += 1
        if kind == Types.F16:
            np.testing.assert_allclose(values, old, rtol=2**-10)
            continue
        assert kind == Types.Q8_0
        limit = (0.5 + 127 * _SCALE) * steps(old, 127) * 1.001
        assert (np.abs(values - old) <= limit).all(), name
        assert np.abs(values - old).max() > 0.3 * steps(old, 127).min(), "rounded at all"
    assert changed == 2 * 7 + 1 + 1  # matrices of two layers, the head and the narrow one
    assert made["token_embd.weight"][0] == was["token_embd.weight"][0] == Types.Q8_0
    assert made["blk.0.ffn_gate_inp.weight"][0] == Types.F32
    assert made["blk.0.narrow.weight"][0] == Types.F16
    assert made["blk.0.attn_norm.weight"][0] == Types.F32


def test_q4_1_keeps_embedding_and_head_in_eight_bits(source, tmp_path):
    made = tensors_of(requantise(source, tmp_path / "made.gguf", "q4_1"))
    assert made["token_embd.weight"][0] == made["output.weight"][0] == Types.Q8_0
    kind, values = made["blk.1.ffn_up.weight"]
    old = tensors_of(source)["blk.1.ffn_up.weight"][1]
    assert kind == Types.Q4_1
    # Scale and least value are float16: of 15 steps each may be off by a part of itself.
    limit = (0.5 + 30 * _SCALE) * steps(old, 15) + np.abs(old).max() * _SCALE
    assert (np.abs(values - old) <= limit).all()


@pytest.mark.parametrize("weights", ["f32", "f16", "bf16"])
def test_plain_types(source, tmp_path, weights):
    path = requantise(source, tmp_path / "made.gguf", weights)
    kind, values = tensors_of(path)["blk.0.attn_k.weight"]
    assert kind == Types[weights.upper()]
    rtol = {"f32": 0, "f16": 0, "bf16": 2**-8}[weights]  # it was f16
    np.testing.assert_allclose(
        values, tensors_of(source)["blk.0.attn_k.weight"][1], rtol=rtol, atol=0
    )
    assert keys_of(path)["general.file_type"][1] == requantised._FILE_TYPES[weights]


def test_keys_are_copied_with_their_types(tmp_path):
    source = tmp_path / "keys.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_custom_alignment(64)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_uint8("x.u8", 200)
    writer.add_int16("x.i16", -3)
    writer.add_uint32("x.u32", 7)
    writer.add_int32("x.i32", 7)
    writer.add_uint64("x.u64", 2**40)
    writer.add_float32("x.f32", 0.1)
    writer.add_float64("x.f64", 0.1)
    writer.add_bool("x.bool", True)
    writer.add_string("x.text", "Ġ\n")
    writer.add_key_value(
        "x.kinds", [1, 3], gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT16
    )
    writer.add_array("x.scores", [0.5, -1.0])
    writer.add_array("x.tokens", ["a", "Ċ"])
    writer.add_uint16("split.count", 1)
    writer.add_tensor("a.weight", np.ones((2, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = keys_of(requantise(source, tmp_path / "made.gguf", "q8_0"))
    wanted = keys_of(source)
    for name in ("general.alignment", "split.count"):
        del wanted[name]
    kinds, _ = wanted["general.file_type"]
    wanted["general.file_type"] = (kinds, int(gguf.LlamaFileType.MOSTLY_Q8_0))
    assert made == wanted


def test_the_second_call_makes_nothing(source, tmp_path, monkeypatch):
    target = tmp_path / "peers" / "made.gguf"
    seen = []
    assert requantise(source, target, "q8_0", lambda *said: seen.append(said)) == target
    label, done, total = seen[-1]
    assert label == "requantise to q8_0"
    assert 0 < done == total
    monkeypatch.setattr(requantised, "_write", None)
    assert requantise(source, target, "q8_0") == target
    assert [path.name for path in target.parent.iterdir()] == ["made.gguf"]


def test_a_file_of_that_type_serves_as_it_is(source, tmp_path):
    made = requantise(source, tmp_path / "made.gguf", "q8_0")
    assert requantise(made, tmp_path / "again.gguf", "q8_0") == made
    assert not (tmp_path / "again.gguf").exists()


def test_what_fails_half_way_leaves_nothing(source, tmp_path, monkeypatch):
    target, calls = tmp_path / "peers" / "made.gguf", []

    def full(values, kind):
        calls.append(kind)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return np.zeros(math.prod(values.shape) // 32 * 34, np.uint8)

    monkeypatch.setattr(requantised, "quantize", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        requantise(source, target, "q8_0")
    assert len(calls) == 4
    assert list(target.parent.iterdir()) == []


def test_a_damaged_source_leaves_nothing(source, tmp_path):
    source.write_bytes(source.read_bytes()[:-5000])
    target = tmp_path / "peers" / "made.gguf"
    with pytest.raises(CheckpointError, match=r"source\.gguf"):
        requantise(source, target, "q8_0")
    assert not target.exists()


def test_a_model_has_one_file_for_each_type_of_one_source(tmp_path):
    checkpoint = tiny_model.write_checkpoint(tmp_path / "tiny")
    other = tiny_model.write_checkpoint(tmp_path / "other", seed=1)
    cache = tmp_path / "cache"
    made = [
        file_of(str(path.with_suffix(".gguf")), path, weights, cache)
        for path, weights in ((checkpoint, "q8_0"), (checkpoint, "f16"), (other, "q8_0"))
    ]
    assert len(set(made)) == 3
    assert {path.parent for path in made} == {cache / "peers"}
    assert made[0].name.startswith("tiny-")
    assert made[0].name.endswith("-q8_0.gguf")


def test_a_directory_has_no_gguf_file(tmp_path):
    checkpoint = tiny_model.write_checkpoint(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"is a directory; nearest: the \.gguf file"):
        file_of(str(checkpoint), checkpoint, "q8_0", tmp_path / "cache")


def test_types_are_those_of_the_file(source):
    """The fixture is what the tests above take it for."""
    kinds = {int(kind) for kind, _ in tensors_of(source).values()}
    assert kinds == {F32, F16, Q8_0}
