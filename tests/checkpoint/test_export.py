"""A checkpoint goes home: Hugging Face -> Orbax -> Hugging Face, bit for bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tiny_gguf
import tiny_hf
from safetensors import safe_open
from safetensors.numpy import load_file

from tpuinfer.checkpoint import export as room
from tpuinfer.checkpoint import safetensors
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.export import export
from tpuinfer.errors import CheckpointError
from tpuinfer.models import registry
from tpuinfer.models.blueprint import weights
from tpuinfer.models.names import Part, fused, hugging_face


def stored(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        assert (values.dtype, values.shape) == (right[name].dtype, right[name].shape)
        np.testing.assert_array_equal(
            values.reshape(-1).view(np.uint8), right[name].reshape(-1).view(np.uint8)
        )


def test_there_and_back_keeps_every_bit(tmp_path: Path) -> None:
    folder = tiny_hf.write(tmp_path / "tiny")
    back = export(convert(folder, tmp_path / "ours"), tmp_path / "back")
    same_bits(stored(back), stored(folder))
    for name in ("config.json", *tiny_hf.TEXTS):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    assert {file.name for file in back.iterdir() if file.is_file()} == {
        "model.safetensors",
        "config.json",
        *(name for name in tiny_hf.TEXTS if "/" not in name),
    }


def odd_names(config: Any) -> dict[str, tuple[Part, ...]]:
    """The tiny llama as families with odd checkpoints keep theirs: one kind of part each."""
    shapes = weights(registry.build(config))
    names = hugging_face(shapes)
    for i in range(config.layers):
        at = f"layers.{i}."
        qkv = tuple(f"{at}self_attn.{part}_proj.weight" for part in "qkv")
        names |= fused(shapes, qkv, f"model.{at}self_attn.qkv_proj.weight")
        F, D = shapes[f"{at}mlp.gate_proj.weight"].shape
        for start, part in enumerate(("gate", "up")):
            names[f"{at}mlp.{part}_proj.weight"] = (
                Part(f"model.{at}mlp.gate_up", (D, 2 * F), (start, 2 * F, 2), axis=1, swap=True),
            )
        heads = shapes[f"{at}self_attn.o_proj.weight"].shape  # [D, N, H], kept row by row
        names[f"{at}self_attn.o_proj.weight"] = tuple(
            Part(f"model.{at}self_attn.o.{row}", (heads[1] * heads[2],), at=row)
            for row in range(heads[0])
        )
    return names


def test_odd_checkpoints_come_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = registry.families()["llama"]
    odd = dataclasses.replace(family, hf_names=odd_names)
    ordinary = convert(tiny_hf.write(tmp_path / "tiny"), tmp_path / "ours")
    monkeypatch.setattr(registry, "family_of", lambda config: odd)
    there = export(ordinary, tmp_path / "odd")
    found = stored(there)
    plain = tiny_hf.tensors()
    at = "model.layers.1."
    np.testing.assert_array_equal(
        found[f"{at}self_attn.qkv_proj.weight"],
        np.concatenate([plain[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]),
    )
    np.testing.assert_array_equal(
        found[f"{at}mlp.gate_up"][:, 1::2], plain[f"{at}mlp.up_proj.weight"].T
    )
    np.testing.assert_array_equal(
        found[f"{at}self_attn.o.3"], plain[f"{at}self_attn.o_proj.weight"][3]
    )
    same_bits(stored(export(convert(there, tmp_path / "again"), tmp_path / "back")), found)


def test_shards_are_cut_by_size_and_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHARD_BYTES", 6000)
    folder = tiny_hf.write(tmp_path / "tiny")
    back = export(folder, tmp_path / "back")
    same_bits(stored(back), stored(folder))
    index = json.loads((back / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in back.glob("*.safetensors"))
    assert files == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    for name, file in index["weight_map"].items():
        assert name in load_file(back / file)
    sizes = [sum(v.nbytes for v in load_file(back / file).values()) for file in files]
    assert index["metadata"]["total_size"] == sum(sizes)
    assert max(sizes) <= 6000
    same_bits(stored(export(back, tmp_path / "again")), stored(folder))


def test_tensors_are_aligned_for_their_readers(tmp_path: Path) -> None:
    """A float32 tensor after an odd number of bfloat16 values would not be."""
    low, high = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
    planned = [room._Planned("a", (3,), low, ()), room._Planned("b", (2,), high, ())]
    (shard,) = room._shards(planned)
    file = tmp_path / "x.safetensors"
    file.write_bytes(room._header(shard) + bytes(14))
    found = safetensors.open_file(file)
    assert found.keys() == {"a", "b"}
    assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in found.values())
    with safe_open(file, "numpy") as judge:
        assert judge.metadata() == {"format": "pt"}
        assert judge.get_tensor("b").shape == (2,)


def test_a_type_asked_for_is_written_and_said(tmp_path: Path) -> None:
    back = export(tiny_hf.write(tmp_path / "tiny"), tmp_path / "back", "float32")
    assert {values.dtype for values in stored(back).values()} == {np.dtype(np.float32)}
    assert json.loads((back / "config.json").read_text())["dtype"] == "float32"


def test_a_gguf_file_goes_out_as_well(tmp_path: Path) -> None:
    file = tiny_gguf.write_llama(tmp_path / "tiny.gguf")
    steps: list[tuple[str, int, int]] = []
    out = export(file, tmp_path / "out", "float32", lambda *step: steps.append(step))
    found = stored(out)
    wanted, _ = tiny_gguf.llama_tensors()["blk.1.attn_v.weight"]
    np.testing.assert_array_equal(found["model.layers.1.self_attn.v_proj.weight"], wanted)
    written = [step for step in steps if step[0] == "write"]
    total = sum(values.nbytes for values in found.values())
    assert written[0] == ("write", 0, total)
    assert written[-1] == ("write", total, total)


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = tiny_hf.write(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="already exists"):
        export(folder, folder)
    with pytest.raises(CheckpointError, match="writes to a local directory"):
        export(folder, "gs://bucket/out")
    ours = convert(folder, tmp_path / "ours")
    manifest = json.loads((ours / "tpuinfer.json").read_text())
    manifest["params"]["more"] = manifest["params"].pop("norm.weight")
    (ours / "tpuinfer.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"norm\.weight is missing; more is not part"):
        export(ours, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parity
def test_transformers_loads_what_we_write(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the parity extra (torch)")
    transformers = pytest.importorskip(
        "transformers", reason="needs the parity extra (transformers)"
    )
    folder = tiny_hf.write(tmp_path / "tiny")
    back = export(convert(folder, tmp_path / "ours"), tmp_path / "back")
    tokens = torch.arange(9)[None]
    logits = []
    for path in (folder, back):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)
