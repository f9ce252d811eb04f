"""Cells on slices that are not here: reckoned, and one that the TPU compiler makes."""

import dataclasses
import json

import pytest
from planning.described import LIBTPU, WHY

from tpuinfer.errors import ConfigError
from tpuinfer.experiment import grid, sweep
from tpuinfer.experiment.described import asked
from tpuinfer.planning import as_json
from tpuinfer.planning.answer import answer
from tpuinfer.sharding.presets import PRESETS

M = "llama-3.1-8b"

_SMALL = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def test_a_record_is_the_planners_answer(tmp_path):
    cells = grid(M, ["8", "2x4"], ["1d"], ["64x2048"], "v5e:2x4")
    found = sweep(cells, tmp_path / "a.jsonl")
    for cell, record in zip(cells, found, strict=True):
        told = as_json.as_json(answer(asked(cell)))
        assert (record.status, record.why, record.logits) == ("ok", None, None)
        assert record.hbm["weights"] == told["hbm_per_chip"]["weights"]
        assert record.hbm["estimated"] == ["temporaries"]
        decode = told["programs"]["decode"]
        for name in ("ideal_bytes", "bound_ms", "bound", "limit", "collectives"):
            assert record.decode[name] == decode[name]
        assert record.decode["traffic_bytes"] is None
        assert record.decode["counted"] == "reckoned"
        assert record.decode["measured_ms"] is None
        assert record.compile_seconds == {}
        assert (record.where["how"], record.where["device_kind"]) == ("reckoned", "TPU v5e")
    assert found[0].layout != found[1].layout


def test_what_prefill_moves_is_in_the_record(tmp_path):
    table = dataclasses.replace(PRESETS["2d"], prefill=PRESETS["1d"])
    cells = grid(M, ["2x4"], {"1d": PRESETS["1d"], "apart": table}, ["64x2048"], "v5e:2x4")
    same, apart = sweep(cells, tmp_path / "a.jsonl")
    assert (same.resharding_bytes, same.repeats) == (0, 1)
    assert apart.resharding_bytes > 1e9


def test_kv_heads_that_are_repeated_are_told(tmp_path):
    (found,) = sweep(grid(M, ["16"], ["1d"], ["64x2048"], "v5e:4x4"), tmp_path / "a.jsonl")
    assert found.repeats == 2


def test_what_cannot_be_is_a_record_too(tmp_path):
    cells = grid("llama-3.3-70b", ["8", "3x2"], ["1d"], ["16x2048"], "v5e:2x4")
    fits, mesh = sweep(cells, tmp_path / "a.jsonl")
    assert fits.status == "does not fit"
    assert fits.why.startswith("arrays take ")
    assert fits.hbm["headroom"] < 0
    assert fits.decode["bound_ms"] > 0
    assert mesh.status == "refused"
    assert "mesh 3x2 is of 6 devices, v5e:2x4 has 8" in mesh.why
    assert (mesh.hbm, mesh.programs) == (None, {})


def test_the_model_and_the_compiler_are_looked_for_first(tmp_path):
    with pytest.raises(ConfigError, match="nearest: llama-3"):
        sweep(grid("lama-3", ["8"], topology="v5e:2x4"), tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="the compiler that needs no device is the TPU's"):
        sweep(grid(M, ["8"], topology="h100:8"), tmp_path / "b.jsonl", compile=True)


@pytest.mark.aot
@pytest.mark.skipif(not LIBTPU, reason=WHY)
def test_the_compiler_counts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(_SMALL))
    cells = grid(str(tmp_path), ["4"], ["1d"], ["2x128"], "v5e:2x2", steps=1, attention="reference")
    (record,) = sweep(cells, tmp_path / "a.jsonl", compile=True)
    assert record.status == "ok"
    assert record.where["how"] == "compiled"
    assert record.decode["counted"] == "compiled"
    assert record.decode["traffic_ratio"] > 1
    assert record.decode["collectives"]["reduce-scatter"]["count"] == 3
    assert all(seconds > 0 for seconds in record.compile_seconds.values())
    assert "decode" in record.compile_seconds
    assert record.hbm["estimated"] == []
